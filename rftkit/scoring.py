"""Log-probs of given token ids: micro-batches by token budget, logits only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rftkit.objectives import token_log_probs


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


def target_log_probs(
    net: Any,
    contexts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π(target | context) per token in nats and its mask, both [rows, longest target].

    Rows are padded on the right, where a causal model cannot look, so no attention mask is needed
    and the fast kernels apply.
    """
    device = next(net.parameters()).device
    rows = [[*c, *t] for c, t in zip(contexts, targets, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    first = min(map(len, contexts)) - 1  # the earliest position whose logits are needed
    logits = net(ids, use_cache=False, logits_to_keep=width - first).logits[:, :-1]
    log_probs = token_log_probs(logits / temperature, ids[:, first + 1 :])
    start = torch.tensor([len(c) - 1 - first for c in contexts], device=device)[:, None]
    length = torch.tensor([len(t) for t in targets], device=device)[:, None]
    column = torch.arange(int(length.max()), device=device)[None]  # [1, longest target]
    mask = column < length
    aligned = log_probs.gather(1, (start + column).clamp(max=log_probs.shape[1] - 1))
    return aligned.masked_fill(~mask, 0.0), mask.to(aligned.dtype)


@torch.no_grad()
def score_targets(
    net: Any,
    contexts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    token_budget: int,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probs of each row's target, in nats, without gradients; rows of any length and number."""
    out: list[torch.Tensor] = [torch.empty(0)] * len(targets)
    for group in micro_batches(
        [len(c) + len(t) for c, t in zip(contexts, targets, strict=True)], token_budget
    ):
        values, _ = target_log_probs(
            net, [contexts[i] for i in group], [targets[i] for i in group], temperature
        )
        for i, row in zip(group, values.cpu(), strict=True):
            out[i] = row[: len(targets[i])]
    return out


def pad_rows(
    rows: Sequence[torch.Tensor], width: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Stack rows of different length, zeros on the right: [rows, width or longest]."""
    padded = torch.zeros(len(rows), width or max(map(len, rows), default=0))
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded.to(device)
