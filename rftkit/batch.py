"""From a batch of rollouts to its loss, micro-batch by micro-batch.

Every different sequence goes through the model once: equal rollouts share it, and a refined
response that equals its response costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from rftkit.config import RunConfig
from rftkit.constraints import MicroBatch, NoConstraint, Pull
from rftkit.models import Policy
from rftkit.objectives import normaliser, policy_gradient_loss, truncated_weights
from rftkit.rollout import Rollouts
from rftkit.scoring import pad_rows, target_batches, target_log_probs


@dataclass
class Batch:
    """One step's rollouts with what the loss needs.

    advantages, counted [rollouts]: the policy gradient leaves out a response whose `counted` is 0.
    old: log-probs at the first pass over the batch, by rollout; filled by that pass.
    """

    rollouts: Rollouts
    advantages: torch.Tensor
    counted: torch.Tensor
    pull: Pull
    old: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass
class Sequence:
    """A different (context, target), the rollouts that it is, and how many refined responses."""

    context: list[int]
    target: list[int]
    rollouts: list[int] = field(default_factory=list)
    refined: int = 0


class Losses(NamedTuple):
    """One micro-batch's share of the batch's losses; `constraint` is None where there is none."""

    policy: torch.Tensor
    constraint: torch.Tensor | None
    clip_fraction: float


def sequences(batch: Batch) -> list[Sequence]:
    """The different sequences that have a gradient."""
    rollouts, pull = batch.rollouts, batch.pull
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Sequence] = {}

    def find(row: int, target: list[int]) -> Sequence:
        context = rollouts.prompt_ids[row]
        return found.setdefault((tuple(context), tuple(target)), Sequence(context, target))

    for row, ids in enumerate(rollouts.response_ids):
        if batch.advantages[row] != 0 or pull.ref_log_probs is not None:
            find(row, ids).rollouts.append(row)
    for row in pull.sft_rows:
        assert pull.refinements is not None
        find(row, pull.refinements[row].refined_ids).refined += 1
    return list(found.values())


def losses(
    policy: Policy, constraint: NoConstraint, config: RunConfig, batch: Batch
) -> Iterator[Losses]:
    """Yield each micro-batch's losses, with gradients; together they are the batch's."""
    device, rollouts, pull = policy.device, batch.rollouts, batch.pull
    ref = pull.ref_log_probs
    counted = batch.counted.to(device)
    mask = pad_rows([torch.ones(len(ids)) for ids in rollouts.response_ids], device=device)
    mask = mask * counted[:, None]
    total = float(normaliser(mask, config.aggregate, config.max_new_tokens))
    tokens = float(mask.sum().clamp(min=1))
    sft_total = float(sum(len((pull.refinements or [])[i].refined_ids) for i in pull.sft_rows))
    every = sequences(batch)
    contexts, targets = [s.context for s in every], [s.target for s in every]
    for group in target_batches(policy.model, contexts, targets, config.token_budget):
        part = [every[i] for i in group]
        logp, seen = target_log_probs(
            policy.model, [s.context for s in part], [s.target for s in part], config.temperature
        )  # [sequences, seq]
        rows = [row for s in part for row in s.rollouts]
        place = [i for i, s in enumerate(part) for _ in s.rollouts]
        learn = [i for i, s in enumerate(part) if s.refined]
        row_logp, row_mask = logp[place], seen[place] * counted[rows][:, None]  # [rows, seq]
        for row, values in zip(rows, row_logp.detach().cpu(), strict=True):
            batch.old.setdefault(row, values[: len(rollouts.response_ids[row])])
        width = logp.shape[1]
        old = pad_rows([batch.old[row] for row in rows], width, device)
        sampled = pad_rows([rollouts.log_probs[row] for row in rows], width, device)
        gradient = policy_gradient_loss(
            row_logp,
            old,
            batch.advantages.to(device)[rows],
            row_mask,
            config.clip_low,
            config.clip_high,
            config.aggregate,
            weights=truncated_weights(old, sampled, config.importance_cap),
            total=total,
        )
        micro = MicroBatch(
            logp=row_logp,
            ref_logp=pad_rows([ref[row] for row in rows], width, device) if ref else None,
            mask=row_mask,
            total=tokens,
            sft_logp=logp[learn],
            sft_mask=seen[learn],
            sft_count=torch.tensor([float(part[i].refined) for i in learn], device=device),
            sft_total=sft_total,
        )
        share = float(row_mask.sum()) / tokens
        yield Losses(gradient.loss, constraint.loss(micro), float(gradient.clip_fraction) * share)
