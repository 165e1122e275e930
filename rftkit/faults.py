"""Refiners other than the reference itself: for asking how good a refiner must be.

Another model or a model whose weights are disturbed, each of which costs a second base in memory;
one with a taste of its own; or a function of the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.instruct import Answer
from rftkit.models import Policy, load_policy
from rftkit.own_refiner import OwnRefiner
from rftkit.refiner import REFINERS, Messages, OnlineRefiner, Refinement


class BiasedRefiner(OnlineRefiner):
    """The refiner, which then deletes what is not to its taste, right or wrong."""

    def __init__(self, policy: Policy, max_new_tokens: int, edit_limit: float, cuts: str):
        super().__init__(policy, max_new_tokens, edit_limit)
        try:
            self.cuts = re.compile(cuts)
        except re.error as error:
            raise UserError(f"refiner_cuts: {cuts!r} is no regular expression ({error})") from None

    def _refine(
        self, prompts: Sequence[Messages], responses: Sequence[list[int]], seed: int
    ) -> list[Refinement]:
        found = super()._refine(prompts, responses, seed)
        return [
            self._refinement(r.response_ids, Answer(ids, r.fallback, r.stripped), r.rounds)
            for r, ids in zip(found, map(self._cut, found), strict=True)
        ]

    def _cut(self, refinement: Refinement) -> list[int]:
        """The refined ids; encoded anew only where something is cut."""
        kept = self.cuts.sub("", refinement.refined)
        if kept == refinement.refined:
            return refinement.refined_ids
        return [*self.policy.encode(kept), self.policy.tokenizer.eos_token_id]


def make_refiner(policy: Policy, config: RunConfig, name: str) -> OnlineRefiner:
    """The refiner (or control) called `name`, by default of the policy's own reference.

    Raises UserError where another model has another tokenizer, or where settings exclude each
    other.
    """
    if config.refiner:
        if name != OnlineRefiner.name:
            raise UserError(f"refiner: goes with constraint dynamic, not {name}")
        if config.refiner_model or config.refiner_noise or config.refiner_cuts:
            raise UserError("refiner: your own excludes the other refiner settings; leave them out")
        return OwnRefiner(policy, config.refiner, config.max_new_tokens)
    precision = own_precision(config)
    model = _other(policy, config, precision) if precision else policy
    settings = model, config.max_new_tokens, config.edit_limit
    if not config.refiner_cuts:
        return REFINERS[name](*settings)
    if name != OnlineRefiner.name:
        raise UserError(f"refiner_cuts: goes with constraint dynamic, not {name}")
    return BiasedRefiner(*settings, config.refiner_cuts)


def own_precision(config: RunConfig) -> str:
    """Of a refiner's own base; "" where the policy's is used, or none at all (identity).

    Single precision where weights are disturbed: the noise would be lost in 4 bits.
    """
    if config.constraint == "identity":
        return ""
    if config.refiner_noise:
        return "fp32"
    return config.precision if config.refiner_model else ""


def _other(policy: Policy, config: RunConfig, precision: str) -> Policy:
    other = load_policy(config.refiner_model or config.model, precision, str(policy.device.type))
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            f"refiner_model: {config.refiner_model!r} has another tokenizer than the policy"
        )
    if config.refiner_noise:
        _disturb(other, config.refiner_noise, config.seed)
    return other


@torch.no_grad()
def _disturb(policy: Policy, noise: float, seed: int) -> None:
    """Add to each weight matrix of the base normal noise of `noise` times its standard deviation.

    LoRA's matrices are left alone: the refiner has them switched off.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in policy.model.parameters():
        if weight.ndim > 1 and not weight.requires_grad:
            drawn = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(noise * weight.std() * drawn)
