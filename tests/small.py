"""Small random models of real architectures, made on the spot with the shipped tokenizer."""

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rftkit.paths import TINY_MODEL

KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@lru_cache
def model_folder(kind: str = "llama", hidden: int = 64) -> str:
    """A saved two-layer model; its weights are scaled up so that it has opinions."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    config_class, model_class = KINDS[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    folder = Path(mkdtemp(prefix="rftkit-test-"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
