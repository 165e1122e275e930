"""From a batch of rollouts to its loss, micro-batch by micro-batch.

Every different sequence goes through the model once: equal rollouts share it, and a refined
response that equals its response costs nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.modeling_layers import GradientCheckpointingLayer

from rftkit.config import RunConfig
from rftkit.constraints import MicroBatch, NoConstraint, Pull
from rftkit.errors import UserError
from rftkit.models import Policy
from rftkit.objectives import normaliser, policy_gradient_loss, truncated_weights
from rftkit.rollout import Rollouts
from rftkit.scoring import pad_rows, target_batches, target_log_probs

log = logging.getLogger("rftkit")


@dataclass
class Batch:
    """One step's rollouts with what the loss needs.

    advantages, counted [rollouts]: the policy gradient and the KL loss leave out a response whose
    `counted` is 0.
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
    """One micro-batch's share of the batch's losses; `constraint` is None where there is none.

    mismatch: mean over the batch's tokens of |log π of the trainer − log π of the sampler| (nats),
    before its first update: what the importance weights make good. A response that has no gradient
    is not read again, and counts as 0.
    """

    policy: torch.Tensor
    constraint: torch.Tensor | None
    clip_fraction: float
    mismatch: float


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


class Gradients:
    """Adds a batch's gradients to the adapter's, in micro-batches of `budget` tokens.

    Where memory runs out the budget halves for good, which is said once, and the rest of the batch
    goes on in smaller parts: the loss is a sum over sequences, so its gradient stays the same.
    """

    def __init__(self, policy: Policy, constraint: NoConstraint, config: RunConfig):
        self.policy, self.constraint, self.config = policy, constraint, config
        self.budget = config.token_budget

    def accumulate(
        self, batch: Batch, measure: bool = False
    ) -> tuple[dict[str, float], list[torch.Tensor]]:
        """The batch's losses, and (where `measure`) the gradient of the constraint's alone.

        Raises UserError where not even a single sequence fits.
        """
        sums = dict.fromkeys(("policy_loss", "constraint_loss", "clip_fraction", "mismatch"), 0.0)
        parameters = self.policy.parameters()
        pulled = [torch.zeros_like(p) for p in parameters if measure]
        totals = Totals.of(self.config, batch)
        with checkpointed(self.policy.model) if self.config.checkpointing else nullcontext():
            waiting = self._parts(sequences(batch), measure)
            while waiting:
                found = self._gradients(batch, totals, waiting[0], measure)
                if found is None:
                    self._halve(waiting[0])
                    waiting = self._parts([s for part in waiting for s in part], measure)
                    continue
                losses, gradients, pulls = found
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = g if p.grad is None else p.grad.add_(g)
                pulled = [a + b for a, b in zip(pulled, pulls, strict=True)]
                sums["policy_loss"] += float(losses.policy.detach())
                sums["clip_fraction"] += losses.clip_fraction
                sums["mismatch"] += losses.mismatch
                if losses.constraint is not None:
                    sums["constraint_loss"] += float(losses.constraint.detach())
                waiting.pop(0)
        return sums, pulled

    def _gradients(
        self, batch: Batch, totals: Totals, part: list[Sequence], measure: bool
    ) -> tuple[Losses, list[torch.Tensor], list[torch.Tensor]] | None:
        """Losses, their gradients, and the constraint's; None where memory ran out.

        `grad`, unlike `backward`, gives every gradient or none, so that a part can be repeated.
        """
        parameters = self.policy.parameters()
        try:
            found = losses_of(self.policy, self.constraint, self.config, batch, totals, part)
            whole, pulls = found.policy, [torch.zeros_like(p) for p in parameters if measure]
            if found.constraint is not None:
                whole = whole + found.constraint
                if measure:
                    pulls = list(
                        torch.autograd.grad(found.constraint, parameters, retain_graph=True)
                    )
            return found, list(torch.autograd.grad(whole, parameters)), pulls
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        return None

    def _halve(self, part: list[Sequence]) -> None:
        clear_device_cache(garbage_collection=True)
        longest = max(len(s.context) + len(s.target) for s in part)
        if len(part) == 1:
            raise UserError(
                f"memory ran out on a single sequence of {longest} tokens; lower max_new_tokens, "
                "turn checkpointing on, or take a smaller --model"
            )
        if self.budget == self.config.token_budget:
            log.warning(
                "memory ran out: micro-batches are halved from here on, with the same gradient; "
                "a lower token_budget avoids the search"
            )
        self.budget = max(1, min(self.budget, len(part) * longest) // 2)

    def _parts(self, every: list[Sequence], measure: bool) -> list[list[Sequence]]:
        """Micro-batches; smaller ones where a graph is gone through twice, and so kept longer.

        With checkpointing the graph holds little.
        """
        contexts, targets = [s.context for s in every], [s.target for s in every]
        kept = measure and not self.config.checkpointing
        budget = max(1, self.budget * 3 // 4) if kept else self.budget
        groups = target_batches(self.policy.model, contexts, targets, budget)
        return [[every[i] for i in group] for group in groups]


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Inside, layers keep their input alone and compute the rest again in the backward pass.

    Only inside: such a layer reads no KV cache, without which sampling and refining go wrong. The
    layers alone are in train mode, as transformers asks for it; dropout stays off.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [layer.training for layer in layers]
    model.activation_checkpointing_enable()
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training
        model.activation_checkpointing_disable()


class Totals(NamedTuple):
    """What the whole batch's sums are divided by, whatever part of it is at work."""

    policy: float
    tokens: float
    refined: float

    @classmethod
    def of(cls, config: RunConfig, batch: Batch) -> Totals:
        rollouts, pull = batch.rollouts, batch.pull
        mask = pad_rows([torch.ones(len(ids)) for ids in rollouts.response_ids])
        mask = mask * batch.counted[:, None]
        refined = sum(len((pull.refinements or {})[i].refined_ids) for i in pull.sft_rows)
        policy = normaliser(mask, config.aggregate, config.max_new_tokens)
        return cls(float(policy), float(mask.sum().clamp(min=1)), float(refined))


def losses_of(
    policy: Policy,
    constraint: NoConstraint,
    config: RunConfig,
    batch: Batch,
    totals: Totals,
    part: list[Sequence],
) -> Losses:
    """The share that some of a batch's sequences have in its losses, with gradients."""
    device, rollouts, ref = policy.device, batch.rollouts, batch.pull.ref_log_probs
    logp, seen = target_log_probs(
        policy.model, [s.context for s in part], [s.target for s in part], config.temperature
    )  # [sequences, seq]
    rows = [row for s in part for row in s.rollouts]
    place = [i for i, s in enumerate(part) for _ in s.rollouts]
    learn = [i for i, s in enumerate(part) if s.refined]
    counted = batch.counted.to(device)[rows]
    row_logp, row_mask = logp[place], seen[place] * counted[:, None]  # [rows, seq]
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
        total=totals.policy,
    )
    micro = MicroBatch(
        logp=row_logp,
        ref_logp=pad_rows([ref[row] for row in rows], width, device) if ref else None,
        mask=row_mask,
        total=totals.tokens,
        sft_logp=logp[learn],
        sft_mask=seen[learn],
        sft_count=torch.tensor([float(part[i].refined) for i in learn], device=device),
        sft_total=totals.refined,
    )
    share = float(row_mask.sum()) / totals.tokens
    apart = float(((old - sampled).abs() * row_mask).sum()) / totals.tokens
    return Losses(
        gradient.loss, constraint.loss(micro), float(gradient.clip_fraction) * share, apart
    )


def strength(parameters: list[torch.nn.Parameter], pulled: list[torch.Tensor]) -> dict[str, float]:
    """pull = ‖g_constraint‖; strength = pull / (pull + ‖g_policy‖), from what backward left."""
    norm = torch.nn.utils.get_total_norm
    pull = float(norm(pulled))
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    policy = float(norm([g - c for g, c in zip(grads, pulled, strict=True)]))
    return {"strength": pull / (pull + policy) if pull + policy else 0.0, "pull": pull}


def kl_of(rollouts: Rollouts, ref: list[torch.Tensor]) -> float:
    """KL(π‖π_ref) in nats a response, estimated by k1."""
    return fmean(float((p - r).sum()) for p, r in zip(rollouts.log_probs, ref, strict=True))
