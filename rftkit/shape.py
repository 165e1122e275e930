"""What of a model decides its memory, read from its configuration: no weights needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from rftkit.hub import loading, locate


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory: sizes in numbers, not bytes.

    matrices: (inputs, outputs) of each linear layer with an adapter; other: parameters elsewhere.
    heads, kv_heads: widths of all query heads and of all key heads together.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    heads_count: int
    inner: int
    vocab: int
    matrices: tuple[tuple[int, int], ...]
    other: int

    @property
    def weights(self) -> int:
        return sum(i * o for i, o in self.matrices)

    @property
    def largest(self) -> int:
        return max((i * o for i, o in self.matrices), default=0)


def read_shape(model: str) -> Shape:
    """Sizes of a model from its config.json, by a model without storage.

    Raises UserError where there is none, or none of a decoder.
    """
    with loading(model, "has no usable config.json"):
        return shape_of(AutoConfig.from_pretrained(locate(model)))


def shape_of(settings: Any) -> Shape:
    """Sizes of the model that a transformers configuration describes."""
    with init_empty_weights():
        net: Any = AutoModelForCausalLM.from_config(settings)
    net.tie_weights()
    text = settings.get_text_config()
    hidden, heads = text.hidden_size, text.num_attention_heads
    head = net.get_output_embeddings()
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    matrices = tuple((m.in_features, m.out_features) for m in linear)
    width = getattr(text, "head_dim", None) or hidden // heads
    return Shape(
        hidden=hidden,
        layers=text.num_hidden_layers,
        heads=heads * width,
        kv_heads=(getattr(text, "num_key_value_heads", None) or heads) * width,
        heads_count=heads,
        inner=getattr(text, "intermediate_size", None) or 4 * hidden,
        vocab=text.vocab_size,
        matrices=matrices,
        other=sum(p.numel() for p in net.parameters()) - sum(i * o for i, o in matrices),
    )
