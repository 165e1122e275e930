"""A model in the shape of Qwen2.5-0.5B-Instruct with random weights, for the bench on a GPU:

    python tests/benchmarks/qwen_shape.py out/qwen-shape
    rftkit bench --model out/qwen-shape --peer trl --max-new-tokens 128 --json > bench-gpu.json

Speed and memory do not depend on what the weights say. `--layers 2 --hidden 128` makes a small one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM

from rftkit.tiny.made_up import instruct_tokenizer, random_config


def save(folder: Path, layers: int = 24, hidden: int = 896, vocab: int = 151_936) -> None:
    """Write weights (bf16) and tokenizer; heads are 64 wide, two of them for keys."""
    tokenizer = instruct_tokenizer()
    config = random_config(
        tokenizer,
        hidden=hidden,
        vocab_size=vocab,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4864 * hidden // 896,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for option, default in (("--layers", 24), ("--hidden", 896), ("--vocab", 151_936)):
        parser.add_argument(option, type=int, default=default)
    given = parser.parse_args()
    save(given.out, given.layers, given.hidden, given.vocab)
