"""Lesson 03: the KL leash."""

from __future__ import annotations

import torch
from torch import Tensor

from rftkit.exercises import Exercise
from rftkit.objectives import adaptive_beta, kl_k1, kl_k2, kl_k3
from rftkit.toy import boltzmann, cafe

NOW, REFERENCE, BEFORE = torch.tensor([1 / 2, 1 / 8, 1 / 4], dtype=torch.float64).log()


def odds_factor(beta: float) -> float:
    """How the optimum changes the odds of one t more, ctt against ct., from the reference's."""
    scene = cafe()
    ys, reference = scene.reference.sequences(), scene.reference.probs().detach()
    best = boltzmann(reference, scene.task_rewards, beta)
    more, less = ys.index("ctt"), ys.index("ct.")
    return ((best[more] / best[less]) / (reference[more] / reference[less])).item()


def next_beta(beta: float = 0.5, kl: float = 12.0, target: float = 4.0, clip: float = 0.2) -> float:
    return adaptive_beta(beta, kl, target, gain=0.1, clip=clip)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    return -(p * q.log()).sum()


def other_direction(p: Tensor, q: Tensor) -> Tensor:
    return reverse_kl(q, p)


EXERCISES = {
    "03.1": Exercise(
        right=lambda: kl_k3(NOW, REFERENCE).item(),
        because="ρ = (1/8) / (1/2) = 1/4, and 1/4 − 1 − ln 1/4 = 2 ln 2 − 3/4.",
        mistakes=(
            (
                lambda: kl_k3(REFERENCE, NOW).item(),
                "Your ρ is upside down: it is reference / policy, here 1/4 and not 4.",
            ),
            (
                lambda: kl_k1(NOW, REFERENCE).item(),
                "That is k1 = −log ρ. k3 adds ρ − 1 to it.",
            ),
            (
                lambda: kl_k2(NOW, REFERENCE).item(),
                "That is k2, half the square of log ρ. k3 is ρ − 1 − log ρ.",
            ),
            (
                lambda: kl_k3(NOW, BEFORE).item(),
                "That is k3 as it was, with ρ = 1/2. The reference gives 1/8 now.",
            ),
        ),
        otherwise="First ρ = reference / policy of this one token, then ρ − 1 − ln ρ in nats.",
    ),
    "03.2": Exercise(
        right=lambda: odds_factor(0.6),
        because="the factor is e^(0.6 / β): e² at β = 0.3, e¹ at β = 0.6.",
        mistakes=(
            (
                lambda: odds_factor(0.3) / 2,
                "β stands in the exponent: doubling it takes the square root of the factor.",
            ),
            (
                lambda: odds_factor(0.15),
                "That is what half of β would do. A larger β keeps the policy closer.",
            ),
            (
                lambda: odds_factor(0.3),
                "That is the factor at β = 0.3. The reward difference is divided by β.",
            ),
        ),
        otherwise="In π* ∝ π_ref · e^(r/β) the odds of two responses change by "
        "e^(difference of their task rewards / β); one t more pays 0.6.",
    ),
    "03.3": Exercise(
        right=lambda: "none",
        because="the expected gradient of k1 as a loss is zero, whatever β is: nothing holds.",
        mistakes=(
            (
                lambda: "kl",
                (
                    "Only its value is KL. As a loss it is log π of what π sampled itself; such a "
                    "gradient averages to zero. Look at the table of gradients again."
                ),
            ),
            (
                lambda: "dynamic",
                "No refiner takes part. Ask what the expected gradient of log π is, y ~ π.",
            ),
        ),
        otherwise="Answer with one of the words 'none', 'kl' and 'dynamic'.",
    ),
    "03.4": Exercise(
        right=next_beta,
        because="the error (12 − 4) / 4 = 2 is cut to 0.2, so β grows by 0.1 · 0.2 = 2%.",
        mistakes=(
            (
                lambda: next_beta(clip=2.0),
                (
                    "You used the whole error of 2; it is first cut to at most 0.2, so that one "
                    "odd batch cannot move β far."
                ),
            ),
            (
                lambda: next_beta(kl=-12.0),
                "Wrong direction: KL above its target needs a larger β.",
            ),
            (
                lambda: 0.5 + 0.1 * 0.2,
                "The 2% are a share of β: multiply by 1.02, do not add 0.02.",
            ),
        ),
        otherwise="error = (KL − target) / target, cut to ±0.2; then β · (1 + 0.1 · error).",
    ),
    "03.5": Exercise(
        right=lambda: reverse_kl,
        because="KL(p‖q) averages log p − log q under p, the first of the two.",
        mistakes=(
            (
                lambda: other_direction,
                "That is KL(q‖p): the average must be taken under p, the policy's side.",
            ),
            (
                lambda: cross_entropy,
                (
                    "That is the cross-entropy; the entropy of p is still in it. Subtract: log p − "
                    "log q, averaged under p."
                ),
            ),
        ),
        otherwise="Return one number: the sum over responses of p · (log p − log q).",
        view=lambda function: function(
            torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64),
            torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
        ),
    ),
}
