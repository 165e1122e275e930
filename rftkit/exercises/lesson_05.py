"""Lesson 05: dynamic constraints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rftkit.exercises import Exercise
from rftkit.objectives import sft_loss
from rftkit.toy import FOUR_ROLLOUTS, cafe

YS = cafe().reference.sequences()


def four_refined(last: list[float], tokens: int) -> tuple[Tensor, Tensor]:
    """Log-probs and mask of the refined four rollouts, the last with these probabilities."""
    probs, mask = FOUR_ROLLOUTS.probs.clone(), FOUR_ROLLOUTS.mask.clone()
    probs[3] = torch.tensor(last)
    mask[3] = torch.arange(3) < tokens
    return probs.log(), mask


def sft_to_the_end() -> float:
    """SFT loss where tt. is refined to the end alone."""
    return sft_loss(*four_refined([1 / 4, 1, 1], 1)).item()


def mean_of_means() -> float:
    logp, mask = four_refined([1 / 4, 1, 1], 1)
    return -(logp.sum(-1) / mask.sum(-1)).mean().item()


def share(part: Any) -> float:
    """Of q(ct.) at the start of the café, what comes from the responses that `part` selects."""
    scene = cafe()
    probs, goal = scene.reference.probs().detach(), YS.index("ct.")
    kept = torch.tensor([part(y) for y in YS])
    return (probs * kept * scene.refiner[:, goal]).sum().item()


def stop_at_second_t(y: str) -> str:
    return y if y.count("t") < 2 else y[: y.index("t", y.index("t") + 1)] + "."


def no_letter_twice(y: str) -> str:
    return "".join(dict.fromkeys(y.rstrip("."))) + "."


def without_an_end(y: str) -> str:
    return stop_at_second_t(y).rstrip(".") if y.count("t") > 1 else y


def one_too_many(y: str) -> str:
    return y if y.count("t") < 2 else y[: y.index("t", y.index("t") + 1) + 1] + "."


EXERCISES = {
    "05.1": Exercise(
        right=sft_to_the_end,
        because="3 + 5 + 3 + 2 = 13 times ln 2, over the 8 tokens that the refined responses have.",
        mistakes=(
            (
                lambda: sft_to_the_end() * 8 / 9,
                "The sum is right; but the refined responses now have 2 + 3 + 2 + 1 tokens.",
            ),
            (
                lambda: sft_to_the_end() * 8 / 10,
                "You divided by the tokens of the responses. Divide by those of the refined ones.",
            ),
            (
                mean_of_means,
                (
                    "That is the mean of each response's mean. It would pull toward short "
                    "responses even where nothing is changed; the kit's mean is over all tokens."
                ),
            ),
            (
                lambda: sft_loss(*four_refined([1 / 4, 1 / 2, 1], 2)).item(),
                "That is the loss with t. as refined response. The end alone has probability 1/4.",
            ),
        ),
        otherwise="Add −ln of the token probabilities of c., ct., t. and the end alone, then "
        "divide by the number of their tokens. ln 2 ≈ 0.693.",
    ),
    "05.2": Exercise(
        right=lambda: 9,
        because="the gradient is multiplied by 3 and its variance by 3² = 9; its mean stays 0.",
        mistakes=(
            (
                lambda: 3,
                "The gradient itself grows by 3. A variance is a mean of squares.",
            ),
            (
                lambda: 0,
                (
                    "The expected pull is 0 at any λ. The question is how far a batch scatters "
                    "around it."
                ),
            ),
            (
                lambda: 1,
                "What is multiplied by λ scatters more, not as before.",
            ),
        ),
        otherwise="If a random gradient g is replaced by 3 g, what happens to the mean of its "
        "square?",
    ),
    "05.3": Exercise(
        right=lambda: share(lambda y: True),
        because="q collects π of all that is refined to it: ct. itself, and cct, ctc and ctt: "
        "(2 + 3 · 0.2) / 21.",
        mistakes=(
            (
                lambda: share(lambda y: y == "ct."),
                "That is π(ct.). q also collects what the refiner turns into ct.",
            ),
            (
                lambda: share(lambda y: y != "ct."),
                "Those are the changed ones. ct. itself is kept and counts too.",
            ),
            (
                lambda: share(lambda y: y.startswith("ct")),
                "Which other response loses a repeated letter and becomes ct.? Look at cct.",
            ),
        ),
        otherwise="List every response that the refiner turns into ct. (itself included) and add "
        "up their probabilities, weight / 21.",
    ),
    "05.4": Exercise(
        right=lambda: stop_at_second_t,
        because="ct. and cc. stay as they are, ctt becomes ct. and tct becomes tc.: fewest edits.",
        mistakes=(
            (
                lambda: no_letter_twice,
                (
                    "Your refiner also removes a second coffee. What it was not asked to fix, it "
                    "must keep: cc. stays cc."
                ),
            ),
            (
                lambda: without_an_end,
                (
                    "Without '.' the refined response never ends; the end is a token that must be "
                    "learned as well."
                ),
            ),
            (
                lambda: one_too_many,
                "You stop after the second t. Stop before it: ttc becomes t.",
            ),
        ),
        otherwise="A function of one text: with fewer than two t it returns the text as it is, "
        "else what stands before the second t, and '.'.",
        view=lambda function: [function(y) for y in YS],
    ),
}
