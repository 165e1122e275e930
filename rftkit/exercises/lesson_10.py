"""Lesson 10: what can go wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rftkit.exercises import Exercise
from rftkit.objectives import k1_penalised_rewards
from rftkit.toy import FOUR_ROLLOUTS

RIGHT, GROUP = 0.75, 4  # chance of a right response, and responses in a group
# (zero_variance, finished) of five steps
CASES = (
    (0.25, [True, True]),
    (1.0, [True, True]),
    (1.0, [False, False]),
    (0.5, [True, False]),
    (0.0, [False, False]),
)


def penalised(beta: float) -> float:
    """The reward of tt. with β · k1 taken off."""
    four = FOUR_ROLLOUTS
    logs = four.probs.log(), four.ref_probs.log()
    return float(k1_penalised_rewards(four.rewards[0], *logs, four.mask, beta)[3])


def idle(zero_variance: float, finished: Sequence[bool]) -> str:
    """Why a step teaches nothing, as `rftkit.health.idle_reason` decides it."""
    if not any(finished):
        return "cut off"
    return "flat" if zero_variance == 1 else ""


def flat_first(zero_variance: float, finished: Sequence[bool]) -> str:
    if zero_variance == 1:
        return "flat"
    return "" if any(finished) else "cut off"


def one_is_enough(zero_variance: float, finished: Sequence[bool]) -> str:
    if not all(finished):
        return "cut off"
    return "flat" if zero_variance == 1 else ""


def any_flat(zero_variance: float, finished: Sequence[bool]) -> str:
    if not any(finished):
        return "cut off"
    return "flat" if zero_variance > 0 else ""


def _answers(function: Callable[..., Any]) -> list[str]:
    return [function(*case) for case in CASES]


EXERCISES = {
    "10.1": Exercise(
        right=lambda: RIGHT**GROUP + (1 - RIGHT) ** GROUP,
        because="a group is flat when all four are right (0.316) or all four wrong (0.004).",
        mistakes=(
            (
                lambda: RIGHT**GROUP,
                "A group that is wrong throughout has equal rewards, too.",
            ),
            (
                lambda: 1 - RIGHT**GROUP - (1 - RIGHT) ** GROUP,
                "That is the share of groups that do teach something.",
            ),
            (
                lambda: (1 - RIGHT) ** GROUP,
                "A group that is right throughout teaches as little as one that is wrong.",
            ),
            (
                lambda: RIGHT,
                "That is the chance of one right response. All four have to be alike.",
            ),
        ),
        otherwise="Add the chance that all four are right to the chance that all four are wrong.",
    ),
    "10.2": Exercise(
        right=lambda: penalised(-0.5),
        because="tt. has k1 = 2 ln 2, and half of it is now paid out: the further from the "
        "reference, the better.",
        mistakes=(
            (
                lambda: penalised(0.5),
                "That is the reward with the right sign. With the wrong one the penalty is added.",
            ),
            (
                lambda: penalised(-1.0),
                "β is 1/2: half of k1 is added.",
            ),
            (
                lambda: penalised(-0.25),
                "Two tokens have ρ = 1/2; k1 of the response is the sum over both.",
            ),
        ),
        otherwise="k1 = −log ρ of each token, summed: the two tokens with ρ = 1/2 give 2 ln 2. "
        "With the wrong sign β times that is added to the reward, which is 0.",
    ),
    "10.3": Exercise(
        right=lambda: ["blind", "low", "high"],
        because="in A the refiner accepts responses that never end; in B it objects to most "
        "and is not heeded; C no longer learns.",
        mistakes=(
            (
                lambda: ["healthy", "low", "high"],
                ("A looks healthy by what the refiner says. But hardly any response ends."),
            ),
            (
                lambda: ["high", "low", "blind"],
                (
                    "The task reward of A rises to its maximum, so nothing holds it. C stays low: "
                    "it is held too much."
                ),
            ),
            (
                lambda: ["low", "blind", "high"],
                (
                    "A blind refiner changes nothing: that is A. In B it changes nearly "
                    "everything, so it sees the flaw; it just weighs too little."
                ),
            ),
            (
                lambda: ["blind", "low", "healthy"],
                "C has no spread left and a low task reward: it settled too early.",
            ),
        ),
        otherwise='A list of three words, for A, B and C, of "healthy", "low", "high", "blind".',
    ),
    "10.4": Exercise(
        right=lambda: idle,
        because="responses that never end are the cause, equal rewards often their consequence; "
        "so it asks for the end first.",
        mistakes=(
            (
                lambda: flat_first,
                (
                    "When all are cut off, their rewards are often equal as well. Name the cause: "
                    "ask for the end first."
                ),
            ),
            (
                lambda: one_is_enough,
                "One response that was cut off is no reason yet; all of them are.",
            ),
            (
                lambda: any_flat,
                "Some flat groups are normal. The step is idle when all are: a share of 1.",
            ),
        ),
        otherwise='A function of a share and a list of True and False that returns "cut off", '
        '"flat" or "".',
        view=_answers,
    ),
}
