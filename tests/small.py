"""Small random models of real architectures, made on the spot with the shipped tokenizer."""

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rftkit.paths import TINY_MODEL
from rftkit.tasks import load_task
from rftkit.tasks.base import write_jsonl
from rftkit.tiny.made_up import save_random


@lru_cache
def model_folder(kind: str = "llama", hidden: int = 64) -> str:
    """A saved two-layer model with the embedded model's tokenizer."""
    return save_model(AutoTokenizer.from_pretrained(TINY_MODEL), kind, hidden)


def save_model(tokenizer: PreTrainedTokenizerFast, kind: str, hidden: int = 64) -> str:
    """A random model's folder."""
    return save_random(mkdtemp(prefix="rftkit-test-"), tokenizer, kind, hidden)


def orders(folder: Path, n: int = 10) -> str:
    """A file of the café's first orders, as a user's own data."""
    path = folder / "orders.jsonl"
    write_jsonl(path, [p.row() for p in load_task("dialogue").prompts("train")[:n]])
    return str(path)


@lru_cache
def instruct_folder(kind: str = "qwen2") -> str:
    """An instruct model made up on the spot."""
    return save_random(mkdtemp(prefix="rftkit-test-"), None, kind)
