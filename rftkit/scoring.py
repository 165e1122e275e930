"""Log-probs of given token ids: micro-batches by token budget, logits only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rftkit.objectives import token_log_probs
from rftkit.rollout import left_pad

Ids = Sequence[int]


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped so that rows x longest row stays within the budget; similar lengths together.

    A row longer than the budget gets a group of its own.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def target_batches(
    net: Any, contexts: Sequence[Ids], targets: Sequence[Ids], token_budget: int
) -> list[list[int]]:
    """Micro-batches for `target_log_probs`: rows of one context together, where it is shared.

    The budget then counts contexts x longest context + rows x longest target.
    """
    if not shares_contexts(net):
        lengths = [len(c) + len(t) for c, t in zip(contexts, targets, strict=True)]
        return micro_batches(lengths, token_budget)
    keys = [(len(c), tuple(c), len(t)) for c, t in zip(contexts, targets, strict=True)]
    groups: list[list[int]] = []
    known: set[tuple[int, ...]] = set()  # contexts of the last group
    for i in sorted(range(len(keys)), key=keys.__getitem__, reverse=True):
        longest = max(keys[j][2] for j in [i, *(groups[-1] if groups else [])])
        read = len(known | {keys[i][1]}) * keys[groups[-1][0] if groups else i][0]
        if groups and read + (len(groups[-1]) + 1) * longest <= token_budget:
            groups[-1].append(i)
            known.add(keys[i][1])
        else:
            groups.append([i])
            known = {keys[i][1]}
    return groups


def shares_contexts(net: Any) -> bool:
    """Whether a context that several rows begin with can be read once, gradients included.

    Not with checkpointing, nor where layers remember otherwise than by all keys and values.
    """
    layers = DynamicCache(config=net.config).layers
    return not net.is_activation_checkpointing and all(type(x) is DynamicLayer for x in layers)


def target_log_probs(
    net: Any, contexts: Sequence[Ids], targets: Sequence[Ids], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π(target | context) per token in nats and its mask, both [rows, longest target].

    Equal contexts, as those of a group of rollouts, are read once if the model allows it.
    """
    distinct = list(dict.fromkeys(map(tuple, contexts)))
    if len(distinct) < len(contexts) and shares_contexts(net):
        lines = [distinct.index(tuple(c)) for c in contexts]
        log_probs = _behind_shared(net, distinct, lines, targets, temperature)
    else:
        log_probs = _in_one_pass(net, contexts, targets, temperature)
    length = torch.tensor([len(t) for t in targets], device=log_probs.device)[:, None]
    mask = torch.arange(log_probs.shape[1], device=log_probs.device)[None] < length
    return log_probs.masked_fill(~mask, 0.0), mask.to(log_probs.dtype)


def _in_one_pass(
    net: Any, contexts: Sequence[Ids], targets: Sequence[Ids], temperature: float
) -> torch.Tensor:
    """Log-prob of each target token, [rows, longest target], anything behind a row's last one.

    Rows are padded on the right, where a causal model cannot look, so no attention mask is needed
    and the fast kernels apply.
    """
    ids = _pad_right([[*c, *t] for c, t in zip(contexts, targets, strict=True)], net)
    first = min(map(len, contexts)) - 1  # the earliest position whose logits are needed
    logits = net(ids, use_cache=False, logits_to_keep=ids.shape[1] - first).logits[:, :-1]
    log_probs = token_log_probs(logits / temperature, ids[:, first + 1 :])
    start = torch.tensor([len(c) - 1 - first for c in contexts], device=ids.device)[:, None]
    column = torch.arange(max(map(len, targets)), device=ids.device)[None]
    return log_probs.gather(1, (start + column).clamp(max=log_probs.shape[1] - 1))


def _behind_shared(
    net: Any,
    contexts: Sequence[Ids],
    lines: Sequence[int],
    targets: Sequence[Ids],
    temperature: float,
) -> torch.Tensor:
    """As `_in_one_pass`, in two: over the contexts, then over the targets; lines[i] is row i's.

    A context's keys and values reach its rows through the cache; gradients go back the same way.
    """
    ids = _pad_right(targets, net)
    line = torch.tensor(lines, device=ids.device)
    context, seen = left_pad(contexts, 0, ids.device)
    cache = DynamicCache(config=net.config)
    first = net(
        context,
        attention_mask=seen,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[line]  # [rows, 1, vocabulary]
    log_probs = [token_log_probs(first / temperature, ids[:, :1])]
    if ids.shape[1] > 1:
        cache.batch_select_indices(line)
        fed = ids[:, :-1]  # the last token predicts nothing that is asked for
        rest = net(
            fed,
            attention_mask=torch.cat([seen[line], torch.ones_like(fed)], 1),
            position_ids=seen.sum(1)[line, None] + torch.arange(fed.shape[1], device=ids.device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        log_probs.append(token_log_probs(rest / temperature, ids[:, 1:]))
    return torch.cat(log_probs, 1)


def _pad_right(rows: Sequence[Ids], net: Any) -> torch.Tensor:
    """Left-aligned ids, 0 behind them, [rows, longest]."""
    width = max(map(len, rows))
    device = next(net.parameters()).device
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)


@torch.no_grad()
def score_targets(
    net: Any,
    contexts: Sequence[Ids],
    targets: Sequence[Ids],
    token_budget: int,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probs of each row's target, in nats, without gradients; rows of any length and number.

    Equal rows are scored once and share one tensor.
    """
    rows = [(tuple(c), tuple(t)) for c, t in zip(contexts, targets, strict=True)]
    distinct = list(dict.fromkeys(rows))
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], torch.Tensor] = {}
    every = [c for c, _ in distinct], [t for _, t in distinct]
    for group in target_batches(net, *every, token_budget):
        part = [distinct[i] for i in group]
        values, _ = target_log_probs(net, [c for c, _ in part], [t for _, t in part], temperature)
        for row, line in zip(part, values.cpu(), strict=True):
            known[row] = line[: len(row[1])]
    return [known[row] for row in rows]


def pad_rows(
    rows: Sequence[torch.Tensor], width: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Stack rows of different length, zeros on the right: [rows, width or longest]."""
    padded = torch.zeros(len(rows), width or max(map(len, rows), default=0))
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded.to(device)
