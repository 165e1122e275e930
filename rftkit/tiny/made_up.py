"""A made-up instruct model: Qwen's or Llama's architecture, two layers, random weights, ChatML.

For lessons and tests of everything that such a model goes through. It knows nothing: what it writes
is noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rftkit.instruct import EXAMPLES, RULES

KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def instruct_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the refiner's rules, with Qwen's special tokens and chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [RULES, *(text for example in EXAMPLES for text in example)]
    # Tokens such as "!</" let a closing tag cut through one, as it does in real tokenizers.
    bpe.train_from_iterator([*texts, *(3 * ["!</ .</ </refined>"])], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def random_config(
    tokenizer: Any, kind: str = "qwen2", hidden: int = 64, **changed: Any
) -> LlamaConfig | Qwen2Config:
    """Two layers of an architecture in KINDS; `changed` replaces any field of its configuration."""
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config: LlamaConfig | Qwen2Config = KINDS[kind][0](**(fields | changed))
    return config


def save_random(
    folder: str | Path, tokenizer: Any = None, kind: str = "qwen2", hidden: int = 64
) -> str:
    """Write a model with random weights and its tokenizer to `folder`, which is returned.

    tokenizer: `instruct_tokenizer()` unless given. kind: a name in KINDS.
    """
    tokenizer = tokenizer or instruct_tokenizer()
    torch.manual_seed(0)
    model = KINDS[kind][1](random_config(tokenizer, kind, hidden))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that it has opinions
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
