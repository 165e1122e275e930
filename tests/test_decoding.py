"""Draft-verified decoding: what plain greedy decoding writes, in few passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rftkit.decoding import Verified, verify_decode
from rftkit.rollout import generate, left_pad

PAD, EOS = 0, frozenset({1, 2})
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


@lru_cache(maxsize=64)
def random_model(family: str, seed: int, vocab: int = 48, **options: Any) -> Any:
    """fp32, with weights large enough that the context decides the next token."""
    config, model = FAMILIES[family]
    torch.manual_seed(seed)
    net = model(
        config(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.25,
            tie_word_embeddings=False,
            **options,
        )
    )
    return net.eval()


def plain(net: Any, contexts: list[list[int]], limits: Any, eos: frozenset[int] = EOS) -> Any:
    out = generate(net, contexts, max_new_tokens=limits, eos_ids=eos, pad_id=PAD, temperature=0.0)
    return out.ids


def verified(
    net: Any,
    contexts: list[list[int]],
    drafts: list[list[int]],
    limits: Any,
    eos: frozenset[int] = EOS,
    groups: Sequence[int] = (),
) -> Verified:
    return verify_decode(
        net, contexts, drafts, max_new_tokens=limits, eos_ids=eos, pad_id=PAD, groups=groups
    )


@torch.no_grad()
def near_tie(net: Any, contexts: list[list[int]], ids: list[list[int]]) -> bool:
    """Whether rounding could decide a token: greedy decoding itself is then no fixed thing."""
    rows = [c + z for c, z in zip(contexts, ids, strict=True)]
    fed, mask = left_pad(rows, PAD, torch.device("cpu"))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = net(fed, attention_mask=mask, position_ids=positions).logits
    top = logits.topk(2).values
    gaps = top[..., 0] - top[..., 1]
    spans = [gap[-1 - len(z) : -1] for gap, z in zip(gaps, ids, strict=True)]
    return bool(torch.cat(spans).min() < 1e-3)


TOKEN = st.integers(1, 47)
EDIT = st.tuples(
    st.sampled_from(("insert", "delete", "substitute", "flood", "cut", "add EOS")),
    st.floats(0, 1),
    TOKEN,
    st.integers(1, 12),
)
EDITS = st.lists(EDIT, max_size=4)


def edited(ids: list[int], edits: list[tuple[str, float, int, int]]) -> list[int]:
    draft = list(ids)
    for kind, place, token, length in edits:
        i = int(place * len(draft))
        match kind:
            case "insert":
                draft.insert(i, token)
            case "delete":
                del draft[i : i + 1 + length // 6]
            case "substitute":
                draft[i : i + 1] = [token]
            case "flood":
                draft[i:i] = draft[i : i + 1 + length % 3] * length
            case "cut":
                del draft[-length:]
            case "add EOS":
                draft.insert(i, 2)
    return draft


class Batch(NamedTuple):
    net: Any
    contexts: list[list[int]]
    limits: list[int]
    ids: list[list[int]]  # of plain greedy decoding
    drafts: list[list[int]]  # any text, or those ids edited
    groups: list[int]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    net = random_model(draw(st.sampled_from(("llama", "qwen2"))), draw(st.integers(0, 7)))
    groups = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    prompts = [draw(st.lists(TOKEN, max_size=12)) for _ in groups]
    contexts = [
        prompt + draw(st.lists(TOKEN, min_size=1, max_size=8))
        for prompt, size in zip(prompts, groups, strict=True)
        for _ in range(size)
    ]
    limits = [draw(st.integers(1, 20)) for _ in contexts]
    ids = plain(net, contexts, limits)
    drafts = [
        draw(st.lists(TOKEN, max_size=30) | st.builds(edited, st.just(z), EDITS)) for z in ids
    ]
    assume(not near_tie(net, contexts, ids))
    return Batch(net, contexts, limits, ids, drafts, groups)


@given(batches())
@settings(max_examples=60, deadline=None)
def test_writes_what_plain_greedy_decoding_writes(batch: Batch) -> None:
    net, contexts, limits, ids, drafts, groups = batch
    out = verified(net, contexts, drafts, limits)
    assert out.ids == ids
    assert [len(row) for row in out.accepted] == [len(row) for row in ids]
    assert all(1 <= n <= len(row) for n, row in zip(out.rounds, ids, strict=True))
    assert verified(net, contexts, drafts, limits, groups=groups).ids == ids
    # Its own output as draft is accepted whole, all rows in one pass.
    again = verified(net, contexts, ids, limits)
    assert again.ids == ids
    assert again.passes == 1
    assert all(map(all, again.accepted))


@given(batches())
@settings(max_examples=10, deadline=None)
def test_a_row_does_not_depend_on_the_others(batch: Batch) -> None:
    net, contexts, limits, _, drafts, _ = batch
    together = verified(net, contexts, drafts, limits)
    for i, row in enumerate(together.ids):
        assert verified(net, contexts[i : i + 1], drafts[i : i + 1], limits[i]).ids == [row]


def long_responses() -> tuple[Any, list[list[int]], list[list[int]]]:
    """24 rows of 60 tokens, few of them repeated, from a model that never ends by itself.

    So many that the first pass is read in parts; 4 rows in a run share a prompt.
    """
    net = random_model("llama", 3, vocab=2000)
    contexts = [
        [7, 8, 9, row // 4][: 2 + row // 8] * 4 + [row] * (1 + row % 4) for row in range(24)
    ]
    return net, contexts, plain(net, contexts, 60, eos=frozenset())


@pytest.mark.parametrize("kind", ["insert", "delete", "substitute", "flood"])
@pytest.mark.parametrize("edits", [1, 3])
def test_cost_grows_with_the_edits_not_with_the_length(kind: str, edits: int) -> None:
    net, contexts, ids = long_responses()
    damage = [(kind, (2 * n + 1) / (2 * edits), 1999, 5) for n in range(edits)]
    drafts = [edited(row, damage) for row in ids]
    out = verified(net, contexts, drafts, 60, eos=frozenset(), groups=[4] * 6)
    assert out.ids == ids
    # An edit costs a round, a wrong guess one more, and the window takes a few to widen again.
    assert sum(out.rounds) / len(out.rounds) <= 6 * edits


def test_jumps_over_a_flood() -> None:
    net, contexts, ids = long_responses()
    drafts = [row[:30] + row[28:30] * 40 + row[30:] for row in ids]
    for context, draft, row in zip(contexts, drafts, ids, strict=True):
        out = verified(net, [context], [draft], 60, eos=frozenset())
        assert out.ids == [row]
        assert out.passes <= 3


def test_says_which_tokens_the_model_corrected() -> None:
    net, contexts, ids = long_responses()
    draft = [*ids[0][:20], 1999, *ids[0][21:]]
    out = verified(net, contexts[:1], [draft], 60, eos=frozenset())
    assert [i for i, kept in enumerate(out.accepted[0]) if not kept] == [20]


def test_a_refiner_is_the_model_without_its_adapter() -> None:
    net = random_model("qwen2", 1)
    contexts = [[5, 6, 7], [9, 8, 7, 6]]
    ids = plain(net, contexts, 20)
    torch.manual_seed(0)
    policy = get_peft_model(
        random_model.__wrapped__("qwen2", 1),
        LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    ).eval()
    assert plain(policy, contexts, 20) != ids
    with policy.disable_adapter():
        out = verified(policy, contexts, ids, 20)
    assert out.ids == ids
    assert out.passes == 1


def test_a_row_ends_where_the_models_window_does() -> None:
    net = random_model("qwen2", 1)
    window = net.config.max_position_embeddings
    contexts = [[5 + i % 7 for i in range(window - 3)], [5, 6, 7]]
    out = verified(net, contexts, [[], []], 8, eos=frozenset())
    assert list(map(len, out.ids)) == [3, 8]
    for row in (0, 1):
        length = len(out.ids[row])
        assert out.ids[row] == plain(net, contexts[row : row + 1], length, eos=frozenset())[0]


def test_a_sliding_window_model_is_decoded_plainly() -> None:
    """Holes would count as places in its window."""
    net = random_model("mistral", 0, vocab=2000, sliding_window=6)
    # Contexts so long that the holes are too few to be squeezed out.
    contexts = [[5 + 7 * i % 31 for i in range(80)], [9 + 11 * i % 37 for i in range(77)]]
    ids = plain(net, contexts, 40, eos=frozenset())
    drafts = [row[:10] + row[8:10] * 5 + row[10:] for row in ids]
    out = verified(net, contexts, drafts, 40, eos=frozenset())
    assert out.ids == ids
    assert out.rounds == [40, 40]
