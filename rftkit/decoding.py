"""Draft-verified greedy decoding: the tokens of plain greedy decoding, in far fewer passes.

A refined response mostly repeats its draft, so the draft is its own speculation. A pass feeds what
is decided and a window of the draft; the model's argmax at each position says which of these tokens
it would have written itself. The longest agreeing run is accepted, the model's next token follows
it, and `realign` finds where to read on in the draft. Rejected tokens stay in the KV cache as holes
under the attention mask. An unchanged draft costs one pass; else passes grow with the edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rftkit.rollout import generate, left_pad

FIRST_WINDOW = 1 << 30  # draft tokens a row feeds to begin with: all it has
SMALL_WINDOW = 2  # after a rejection; doubles while all is accepted
CHEAP_TOKENS = 32  # a pass over fewer tokens costs about the same
SPARSE = 1.25  # cache slots per token in use, above which the holes are squeezed out


@dataclass
class Verified:
    """What greedy decoding writes for each row, and what it cost.

    accepted: for each token of `ids`, True where it was the next one of the draft, False where the
    model corrected it. passes: forward passes of the batch. rounds: passes each row took part in.
    """

    ids: list[list[int]]
    accepted: list[list[bool]]
    passes: int
    rounds: list[int]


@torch.no_grad()
def verify_decode(
    net: Any,
    contexts: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    eos_ids: frozenset[int],
    pad_id: int,
) -> Verified:
    """Continue each context greedily until EOS or `max_new_tokens` (one number, or one a row).

    drafts: guesses of the continuations, with EOS where they have one; of any length, also empty.
    They change the cost, never the result: `generate` at temperature 0 returns the same ids. That
    holds for exact arithmetic; kernels of low precision may break near-ties the other way when they
    see many tokens at once. The first pass holds logits of [rows, longest draft + 1, vocabulary].
    Where holes are no option (sliding windows, recurrent layers) the model is decoded plainly.
    """
    limits = max_new_tokens
    limits = [limits] * len(contexts) if isinstance(limits, int) else list(limits)
    cache = DynamicCache(config=net.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return _plain(net, contexts, limits, eos_ids, pad_id)
    rows = [
        _Row(list(context), list(draft), limit, eos_ids)
        for context, draft, limit in zip(contexts, drafts, limits, strict=True)
    ]
    device = next(net.parameters()).device
    mask = torch.zeros(len(rows), 0, dtype=torch.long, device=device)  # [alive, slots in the cache]
    alive, passes = rows, 0
    while alive:
        passes += 1
        # One width for all: a shorter row would be padded to it.
        width = max(CHEAP_TOKENS // len(alive), sum(row.reach for row in alive) // len(alive))
        windows = [row.window(width) for row in alive]
        feeds = [row.pending + window for row, window in zip(alive, windows, strict=True)]
        keep = 1 + max(map(len, windows))  # the last pending token predicts the window's first
        greedy, mask = _greedy(net, feeds, cache, mask, keep, pad_id)
        rejected = [
            row.accept(window, line[-1 - len(window) :])
            for row, window, line in zip(alive, windows, greedy, strict=True)
        ]
        mask = _hide(mask, rejected)
        going = [i for i, row in enumerate(alive) if not row.done]
        if 0 < len(going) < len(alive):
            mask = _select(cache, mask, going)
        alive = [alive[i] for i in going]
        if alive and mask.shape[1] > SPARSE * int(mask.sum(1).max()):
            mask = _squeeze(cache, mask)
    return Verified(
        [row.ids for row in rows],
        [row.accepted for row in rows],
        passes,
        [row.rounds for row in rows],
    )


@dataclass
class _Row:
    """One line of the batch: what is decided so far, and where to read on in the draft."""

    pending: list[int]  # decided, but not yet in the cache: first the context, then one token
    draft: list[int]
    limit: int
    eos_ids: frozenset[int]
    ids: list[int] = field(default_factory=list)
    accepted: list[bool] = field(default_factory=list)
    pointer: int = 0
    reach: int = FIRST_WINDOW  # draft tokens this row would feed next
    rounds: int = 0

    @property
    def done(self) -> bool:
        return self.ids[-1] in self.eos_ids or len(self.ids) >= self.limit

    def window(self, width: int) -> list[int]:
        """The draft's next tokens, as far as they can be of use: up to its EOS, up to the limit."""
        width = min(width, self.limit - len(self.ids) - 1)
        window = self.draft[self.pointer : self.pointer + max(width, 0)]
        end = next((i for i, token in enumerate(window) if token in self.eos_ids), len(window))
        return window[:end]

    def accept(self, window: list[int], greedy: list[int]) -> int:
        """Decide on what the model agrees with and its own next token; return the number rejected.

        greedy[i] is the model's token in the place of window[i], and one more behind the last.
        """
        agreed = 0
        while agreed < len(window) and window[agreed] == greedy[agreed]:
            agreed += 1
        token = greedy[agreed]
        self.ids += greedy[: agreed + 1]
        self.pending = [token]
        self.pointer += agreed
        self.rounds += 1
        in_draft = self.draft[self.pointer : self.pointer + 1] == [token]
        self.accepted += [True] * agreed + [in_draft]
        if in_draft:
            self.pointer += 1
            self.reach = 2 * (agreed + 1)
        else:
            self.pointer = realign(self.draft, self.pointer, self.ids, self.eos_ids)
            self.reach = SMALL_WINDOW
        return len(window) - agreed


def realign(
    draft: Sequence[int], rejected: int, ids: Sequence[int], eos_ids: frozenset[int]
) -> int:
    """Where in `draft` to read on when `ids` has just ended otherwise than draft[rejected] says.

    Looks for a place that the last tokens of `ids` (up to 4) lead up to; one farther off must match
    more of them. So the rest of a flood is jumped over, and a wrong guess is made good later.
    Without such a place: behind the rejected token (a substitution), yet never behind EOS.
    """
    at_end = rejected >= len(draft) or draft[rejected] in eos_ids
    home = rejected if at_end else rejected + 1
    best, best_score = home, 0.5
    for place, token in enumerate(draft, 1):
        if token != ids[-1]:
            continue
        match = 1
        while match < min(4, place, len(ids)) and draft[place - 1 - match] == ids[-1 - match]:
            match += 1
        score = match - 0.2 * abs(place - home) ** 0.5  # weights tuned on random edits and floods
        if score > best_score:
            best, best_score = place, score
    return best


def _greedy(
    net: Any, feeds: list[list[int]], cache: Any, mask: torch.Tensor, keep: int, pad_id: int
) -> tuple[list[list[int]], torch.Tensor]:
    """One pass: the model's next token at the last `keep` tokens fed, and the longer mask."""
    ids, visible = left_pad(feeds, pad_id, mask.device)
    mask = torch.cat([mask, visible], 1)
    # Causal order is slot order, holes or not; a token's position counts the visible slots before.
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    out = net(
        ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        logits_to_keep=keep,
    )
    return out.logits.argmax(-1).tolist(), mask


def _hide(mask: torch.Tensor, newest: list[int]) -> torch.Tensor:
    """Mask the `newest[i]` last slots of each row i."""
    from_end = torch.arange(mask.shape[1], 0, -1, device=mask.device)
    return mask * (from_end > torch.tensor(newest, device=mask.device)[:, None])


def _select(cache: Any, mask: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Drop all but these rows from the cache; return their mask."""
    chosen = torch.tensor(rows, device=mask.device)
    cache.batch_select_indices(chosen)
    return mask[chosen]


def _squeeze(cache: Any, mask: torch.Tensor) -> torch.Tensor:
    """Drop holes from the cache, each row's tokens staying in order; return the new mask."""
    longest = int(mask.sum(1).max())
    slots = mask.argsort(dim=1, stable=True)[:, -longest:]  # holes first, so they are cut off
    for layer in cache.layers:
        layer.keys = layer.keys.take_along_dim(slots[:, None, :, None], dim=2)
        layer.values = layer.values.take_along_dim(slots[:, None, :, None], dim=2)
    return mask.gather(1, slots)


def _plain(
    net: Any,
    contexts: Sequence[Sequence[int]],
    limits: list[int],
    eos_ids: frozenset[int],
    pad_id: int,
) -> Verified:
    out = generate(
        net, contexts, max_new_tokens=limits, eos_ids=eos_ids, pad_id=pad_id, temperature=0
    )
    rounds = [len(ids) for ids in out.ids]
    return Verified(out.ids, [[False] * n for n in rounds], max(rounds), rounds)
