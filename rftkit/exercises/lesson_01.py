"""Lesson 01: policy gradients by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rftkit.exercises import Exercise
from rftkit.objectives import group_advantages, policy_gradient_loss
from rftkit.toy import FOUR_ROLLOUTS

REWARDS = FOUR_ROLLOUTS.rewards
ONE_MORE = torch.tensor([[1, 1, 0, 1]], dtype=torch.float64)


def clipped_loss(clip_low: float, clip_high: float = 0.5) -> float:
    """The four rollouts' loss, per token."""
    logp, old_logp = FOUR_ROLLOUTS.probs.log(), FOUR_ROLLOUTS.old_probs.log()
    advantages = group_advantages(REWARDS, "grpo")[0]
    args = (logp, old_logp, advantages, FOUR_ROLLOUTS.mask, clip_low, clip_high)
    return policy_gradient_loss(*args).loss.item()


def clipped_without_minimum(clip_low: float, clip_high: float = 0.5) -> float:
    """The mistake of clipping always, not only where it makes the objective smaller."""
    ratio = (FOUR_ROLLOUTS.probs / FOUR_ROLLOUTS.old_probs).clamp(1 - clip_low, 1 + clip_high)
    gain = ratio * group_advantages(REWARDS, "grpo")[0][:, None] * FOUR_ROLLOUTS.mask
    return -gain.sum().item() / FOUR_ROLLOUTS.mask.sum().item()


def mean_of_the_others(rewards: Tensor) -> Tensor:
    return group_advantages(rewards, "rloo")


def mean_of_all(rewards: Tensor) -> Tensor:
    return group_advantages(rewards, "dr_grpo")


def divided_by_all(rewards: Tensor) -> Tensor:
    others = rewards.sum(-1, keepdim=True) - rewards
    return rewards - others / rewards.shape[-1]


def _values(function: Any) -> Any:
    return function(torch.cat([REWARDS, ONE_MORE]))


EXERCISES = {
    "01.1": Exercise(
        right=lambda: group_advantages(ONE_MORE, "grpo")[0, 2].item(),
        because="the mean is 3/4 and the standard deviation √3/4, so 0 lies √3 of them below.",
        mistakes=(
            (
                lambda: group_advantages(ONE_MORE, "dr_grpo")[0, 2].item(),
                "That is the reward minus the mean; GRPO also divides by the standard deviation.",
            ),
            (
                lambda: ((ONE_MORE - ONE_MORE.mean()) / ONE_MORE.std())[0, 2].item(),
                (
                    "You divided by the sample's standard deviation (n − 1); here it is the "
                    "population's (n). TRL uses yours: the choice only scales all advantages."
                ),
            ),
            (
                lambda: group_advantages(REWARDS, "grpo")[0, 2].item(),
                (
                    "That is the old advantage. Its own reward is the same, but the group's mean "
                    "and spread are not."
                ),
            ),
            (
                lambda: -group_advantages(ONE_MORE, "grpo")[0, 2].item(),
                "Right size, wrong sign: what is worse than the group's mean is pushed down.",
            ),
        ),
        otherwise="Compute the mean of 1, 1, 0, 1 first, then the square root of the mean squared "
        "distance from it, then (0 − mean) / that.",
    ),
    "01.2": Exercise(
        right=lambda: clipped_loss(0.5),
        because="only the two t after nothing change: −1/2 each in place of −3/4, so the sum is "
        "−1/2 in place of −1, over 10 tokens.",
        mistakes=(
            (
                lambda: clipped_loss(0.25),
                (
                    "That is the loss as it was. Look at the first tokens of t. and tt.: their "
                    "ratio is 1/2, which the lower bound of 1/2 no longer changes."
                ),
            ),
            (
                lambda: clipped_without_minimum(0.5),
                (
                    "You clipped every ratio, or lost the sign. The objective takes the smaller of "
                    "ratio · A and clipped ratio · A; the loss is minus its mean."
                ),
            ),
            (
                lambda: 10 * clipped_loss(0.5),
                "That is the sum over tokens. The loss is their mean: divide by the 10 tokens.",
            ),
            (
                lambda: 10 / 12 * clipped_loss(0.5),
                "You divided by 12, padding included. Only the 10 tokens under the mask count.",
            ),
        ),
        otherwise="Go through the ten tokens: min(ratio · A, clipped ratio · A) with the ratio "
        "held between 1/2 and 3/2. Then minus the mean.",
    ),
    "01.3": Exercise(
        right=lambda: _scale("grpo"),
        because="the deviations grow tenfold and so does the standard deviation that divides them: "
        "GRPO is blind to the scale of a reward.",
        mistakes=(
            (
                lambda: _scale("dr_grpo"),
                "So it would be without the division by the standard deviation (Dr. GRPO).",
            ),
            (
                lambda: 1 / _scale("dr_grpo"),
                "The standard deviation divides, but the deviations above it grow as well.",
            ),
        ),
        otherwise="Work out both: (10 − 5) / standard deviation of 10, 10, 0, 0 against "
        "(1 − 1/2) / standard deviation of 1, 1, 0, 0.",
    ),
    "01.4": Exercise(
        right=lambda: mean_of_the_others,
        because="each reward is compared with what the others got, so it does not weaken its own "
        "baseline.",
        mistakes=(
            (
                lambda: mean_of_all,
                (
                    "Your baseline is the mean of all, the reward itself included. Leave it out: "
                    "(sum − reward) / (n − 1)."
                ),
            ),
            (
                lambda: divided_by_all,
                "You left the reward out of the sum but still divide by n; n − 1 are left.",
            ),
        ),
        otherwise="Return a tensor of the shape of `rewards` [prompts, group]: each reward minus "
        "(sum of the group − the reward) / (n − 1). Use keepdim=True in the sum.",
        view=_values,
    ),
}


def _scale(kind: Any) -> float:
    """How much larger the first advantage is if all rewards are ten times as large."""
    return (group_advantages(10 * REWARDS, kind) / group_advantages(REWARDS, kind))[0, 0].item()
