"""Lesson 06: the showdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.exercises import Exercise

BUDGET = 5  # nats
# Name: KL and gold reward at the end of five runs.
ENDS = {"A": (1, 0.6), "B": (2, 0.9), "C": (3, 0.8), "D": (4, 1.2), "E": (2.5, 0.9)}
# KL and gold reward at the evaluations of three runs.
RECORDS = (
    ((0, 0.5), (2, 0.9), (4, 0.8), (9, 0.1), (4.5, 0.3)),
    ((0, 0.5), (1, 0.6), (2, 0.7)),
    ((0, 0.5), (3, 0.6), (7, 1.1), (12, 1.4)),
)
Rows = Sequence[dict[str, float]]


def undominated(strict: bool = False) -> list[str]:
    """Runs that no other beats: as much gold reward for less KL, or more for as much.

    strict: only a run with more gold reward for less KL counts as beating.
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] < b[0] and a[1] > b[1] if strict else a != b and a[0] <= b[0] and a[1] >= b[1]

    return [n for n, end in ENDS.items() if not any(beats(o, end) for o in ENDS.values())]


def seeds_for(level: float) -> int:
    """Fewest seeds of which lowest to highest holds the true median that often."""
    n = 2
    while 1 - 2 * 0.5**n < level:
        n += 1
    return n


def before_the_budget(rows: Rows) -> float:
    return [row["gold_reward"] for row in rows][_first_over(rows) - 1]


def by_peeking(rows: Rows) -> float:
    return max(row["gold_reward"] for row in rows if row["kl"] <= BUDGET)


def one_too_late(rows: Rows) -> float:
    return rows[min(_first_over(rows), len(rows) - 1)]["gold_reward"]


def last_within(rows: Rows) -> float:
    return next(row["gold_reward"] for row in reversed(rows) if row["kl"] <= BUDGET)


def _first_over(rows: Rows) -> int:
    return next((i for i, row in enumerate(rows) if row["kl"] > BUDGET), len(rows))


def _applied(function: Any) -> list[float]:
    runs = [[{"kl": kl, "gold_reward": gold} for kl, gold in record] for record in RECORDS]
    return [float(function(rows)) for rows in runs]


EXERCISES = {
    "06.1": Exercise(
        right=lambda: 3**3,
        because="each of the three places of a resample takes any of the three seeds: 3 · 3 · 3.",
        mistakes=(
            (
                lambda: 6,
                "Those are the orders of three different seeds. A resample may hold one twice.",
            ),
            (
                lambda: 10,
                (
                    "You left out the order. These ten are not equally likely: three different "
                    "seeds come up six ways, one seed three times only one way."
                ),
            ),
            (
                lambda: 9,
                "That is two places. A resample is as large as the sample: three.",
            ),
        ),
        otherwise="How many choices has the first place of a resample, the second, the third?",
    ),
    "06.2": Exercise(
        right=lambda: seeds_for(0.95),
        because="all six lie on one side of the median with chance 2/64, so the range holds it in "
        "97 of 100 experiments; with five it is 94.",
        mistakes=(
            (
                lambda: 5,
                "Close: with five seeds it is 1 − 2/32, not yet 95%.",
            ),
            (
                lambda: 3,
                "With three seeds it is 1 − 2/8: three quarters.",
            ),
            (
                lambda: 20,
                "More than enough. Each seed halves the chance that all lie on one side.",
            ),
        ),
        otherwise="The range misses the median where all n seeds lie above it, or all below: "
        "2 · (1/2)^n. Find the first n at which that is at most 0.05.",
    ),
    "06.3": Exercise(
        right=undominated,
        because="C and E are beaten by B, which has at least their gold reward for less KL.",
        mistakes=(
            (
                lambda: undominated(strict=True),
                "E has no more gold reward than B, and paid more KL for it: B beats it.",
            ),
            (
                lambda: ["D"],
                "D is the best, but not for less than 4 nats. A and B are each best for theirs.",
            ),
            (
                lambda: ["B", "D"],
                "Nothing costs less KL than A, so nothing beats it.",
            ),
        ),
        otherwise="A list of letters, as in ['A', 'E']. For each run look for another with at most "
        "its KL and at least its gold reward.",
        view=lambda names: sorted(names),
    ),
    "06.4": Exercise(
        right=lambda: "fresh",
        because="it trains toward what the reference writes, with no look at the response. On the "
        "café it is a KL constraint, and no better than one.",
        mistakes=(
            (
                lambda: "identity",
                "Identity never asks the reference. It tests whether SFT as such does it.",
            ),
            (
                lambda: "random-edit",
                "Random edits are not what a reference writes. They test the size of the change.",
            ),
            (
                lambda: "dynamic",
                "That is the method. A control leaves one part of it out.",
            ),
        ),
        otherwise="Answer with one of the words 'identity', 'fresh', 'random-edit' and 'dynamic'.",
    ),
    "06.5": Exercise(
        right=lambda: before_the_budget,
        because="it looks at KL alone, and what comes after the budget is spent does not count.",
        mistakes=(
            (
                lambda: by_peeking,
                (
                    "You took the highest gold reward. In a real project nobody could show it "
                    "to you."
                ),
            ),
            (
                lambda: one_too_late,
                "That one has spent the budget already. Take the evaluation before it.",
            ),
            (
                lambda: last_within,
                "KL may come back below 5 later; the run was stopped by then.",
            ),
        ),
        otherwise="A function of a list of dictionaries: go through it, remember the gold_reward, "
        "and stop at the first kl above 5.",
        view=_applied,
    ),
}
