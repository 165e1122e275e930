"""Draft-verified greedy decoding: the tokens of plain greedy decoding, in far fewer passes.

A refined response mostly repeats its draft, so the draft is its own speculation. A pass feeds what
is decided and a window of the draft; the model's argmax at each position says which of these tokens
it would have written itself. The longest agreeing run is accepted, the model's next token follows
it, and `realign` finds where to read on in the draft. Rejected tokens stay in the KV cache as holes
under the attention mask. An unchanged draft costs one pass; else passes grow with the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rftkit.errors import BadStepError
from rftkit.rollout import check_fits, generate, left_pad, max_positions
from rftkit.scoring import micro_batches

FIRST_WINDOW = 1 << 30  # draft tokens a row feeds to begin with: all it has
SMALL_WINDOW = 2  # after a rejection; doubles while all is accepted
CHEAP_TOKENS = {"cpu": 128, "cuda": 1024}  # a pass over fewer tokens costs about the same
PART_TOKENS = {"cpu": 1024, "cuda": 8192}  # the first pass reads so many at once, padding included
SPARSE = 1.5  # cache slots per token in use, above which the holes are squeezed out


@dataclass
class Verified:
    """What greedy decoding writes for each row, and what it cost.

    accepted: for each token of `ids`, True where it was the next one of the draft, False where the
    model corrected it. rounds: forward passes each row took part in.
    """

    ids: list[list[int]]
    accepted: list[list[bool]]
    rounds: list[int]

    @property
    def passes(self) -> int:
        """Forward passes of the batch."""
        return max(self.rounds, default=0)


@torch.no_grad()
def verify_decode(
    net: Any,
    contexts: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    eos_ids: frozenset[int],
    pad_id: int,
    groups: Sequence[int] = (),
) -> Verified:
    """Continue each context greedily until EOS or `max_new_tokens` (one number, or one a row).

    drafts: guesses of the continuations, with EOS where they have one; of any length, also empty.
    They change the cost, never the result: `generate` at temperature 0 returns the same ids. That
    holds for exact arithmetic; kernels of low precision may break near-ties the other way when they
    see many tokens at once.
    groups: sizes of the runs of rows that share a prompt; what the contexts of a run begin with
    alike is read once, in one more pass that is not counted.
    A row ends where the model's window does, which is no end of its text.
    Where holes are no option (sliding windows, recurrent layers) the model is decoded plainly.
    """
    limits = max_new_tokens
    limits = [limits] * len(contexts) if isinstance(limits, int) else list(limits)
    check_fits(net, contexts, 1)
    room = [max_positions(net) - len(context) for context in contexts]
    limits = [int(min(pair)) for pair in zip(limits, room, strict=True)]
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=net.config).layers):
        return _plain(net, contexts, limits, eos_ids, pad_id)
    rows = [
        _Row(list(context), list(draft), limit, eos_ids)
        for context, draft, limit in zip(contexts, drafts, limits, strict=True)
    ]
    batches = _read_prompts(net, rows, groups, pad_id).parts()
    while batches:
        going = [rest for rest in (batch.advance() for batch in batches) if rest.rows]
        batches = [_join(going)] if going else []
    return Verified(
        [row.ids for row in rows],
        [row.accepted for row in rows],
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


@dataclass
class _Batch:
    """Rows that go through the model together, their KV cache, and its mask [rows, slots]."""

    net: Any
    pad_id: int
    rows: list[_Row]
    cache: DynamicCache
    mask: torch.Tensor

    def parts(self) -> list[_Batch]:
        """Split by length: little padding, and logits of few tokens at once."""
        most = PART_TOKENS.get(self.mask.device.type, PART_TOKENS["cpu"])
        lengths = [len(row.pending) + len(row.window(row.reach)) for row in self.rows]
        parts = micro_batches(lengths, most)
        return [self.select(part, [self.rows[i] for i in part]) for part in parts]

    def advance(self) -> _Batch:
        """One round of every row in one pass; returns the batch of those that go on."""
        count = len(self.rows)
        cheap = CHEAP_TOKENS.get(self.mask.device.type, CHEAP_TOKENS["cpu"])
        # One width for all: a shorter row would be padded to it.
        width = max(cheap, sum(row.reach for row in self.rows)) // count
        windows = [row.window(width) for row in self.rows]
        feeds = [row.pending + window for row, window in zip(self.rows, windows, strict=True)]
        # 1 more, for the last pending token predicts the first of the window.
        logits = self.feed(feeds, 1 + max(map(len, windows)))
        best = logits.argmax(-1, keepdim=True)
        if not logits.gather(-1, best).isfinite().all():  # else token 0 would be taken, for ever
            raise BadStepError("refiner's logits not finite", "take another refiner, or less noise")
        greedy = best[..., 0].tolist()
        rejected = [
            row.accept(window, line[-1 - len(window) :])
            for row, window, line in zip(self.rows, windows, greedy, strict=True)
        ]
        from_end = torch.arange(self.mask.shape[1], 0, -1, device=self.mask.device)
        self.mask *= from_end > torch.tensor(rejected, device=self.mask.device)[:, None]
        going = [i for i, row in enumerate(self.rows) if not row.done]
        rest = self if len(going) == count else self.select(going, [self.rows[i] for i in going])
        return rest.squeezed() if going else rest

    def feed(self, feeds: list[list[int]], keep: int) -> torch.Tensor:
        """Append tokens to each line; logits of the last `keep`, [rows, keep, vocabulary]."""
        ids, visible = left_pad(feeds, self.pad_id, self.mask.device)
        self.mask = torch.cat([self.mask, visible], 1)
        # Causal order is slot order, holes or not; a position counts the visible slots before it.
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits: torch.Tensor = self.net(
            ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=keep,
        ).logits
        return logits

    def select(self, lines: Sequence[int], rows: list[_Row]) -> _Batch:
        """`rows` with copies of these lines of the cache; a line may come repeatedly."""
        index = torch.tensor(lines, dtype=torch.long, device=self.mask.device)
        cache = _map(lambda x: x.index_select(0, index), self.cache)
        return _Batch(self.net, self.pad_id, rows, cache, self.mask[index])

    def squeezed(self) -> _Batch:
        """Without the holes, where they are many; each row's tokens stay in order."""
        longest = int(self.mask.sum(1).max())
        if self.mask.shape[1] <= SPARSE * longest:
            return self
        slots = self.mask.argsort(dim=1, stable=True)[:, -longest:]  # holes first: cut off
        lines = torch.arange(len(slots), device=slots.device)[:, None]
        cache = _map(lambda x: x.transpose(1, 2)[lines, slots].transpose(1, 2), self.cache)
        return _Batch(self.net, self.pad_id, self.rows, cache, self.mask.gather(1, slots))


def _read_prompts(net: Any, rows: list[_Row], groups: Sequence[int], pad_id: int) -> _Batch:
    """The batch of all rows, with what the contexts of each group begin with alike in its cache."""
    empty = torch.zeros(len(rows), 0, dtype=torch.long, device=next(net.parameters()).device)
    batch = _Batch(net, pad_id, rows, DynamicCache(), empty)
    heads: list[list[int]] = []
    line: list[int] = []  # of `heads`, for each row
    for size in groups:
        run = rows[len(line) : len(line) + size]
        # A single row gains nothing here; and something must stay pending, for it predicts.
        head = _common([row.pending[:-1] for row in run]) if size > 1 else []
        for row in run:
            row.pending = row.pending[len(head) :]
        line += [len(heads)] * size
        heads.append(head)
    if not any(heads):
        return batch
    first = batch.select(range(len(heads)), [])
    first.feed(heads, 1)
    return first.select(line, rows)


def _common(lists: Sequence[list[int]]) -> list[int]:
    """Longest common prefix: that of the first and the last in order."""
    low, high = min(lists), max(lists)
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(differ, len(low))]


def _join(batches: Sequence[_Batch]) -> _Batch:
    """One batch of several, the shorter caches padded on the left."""
    first = batches[0]
    if len(batches) == 1:
        return first
    longest = max(batch.mask.shape[1] for batch in batches)
    cache = _map(
        lambda *parts: torch.cat([pad(x, (0, 0, longest - x.shape[2], 0)) for x in parts]),
        *(batch.cache for batch in batches),
    )
    mask = torch.cat([pad(b.mask, (longest - b.mask.shape[1], 0)) for b in batches])
    return _Batch(first.net, first.pad_id, [row for b in batches for row in b.rows], cache, mask)


def _map(change: Callable[..., torch.Tensor], *caches: DynamicCache) -> DynamicCache:
    """`change` applied to keys and to values, each [rows, heads, slots, size], layer by layer."""
    changed = DynamicCache()
    for i, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys = change(*(layer.keys for layer in layers))
        changed.update(keys, change(*(layer.values for layer in layers)), i)
    return changed


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
    return Verified(out.ids, [[False] * n for n in rounds], rounds)
