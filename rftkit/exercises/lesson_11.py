"""Lesson 11: how much of it, and where it fails."""

from __future__ import annotations

from typing import Any

from rftkit.exercises import Exercise

RESPONSES, LENGTH, SHARE = 64, 20, 1 / 8
GOOD, KEPT = 0.9, 0.8
# What a refiner keeps and repairs, and the share of good responses now.
CASES = ((1.0, 0.8, 0.3), (0.8, 1.0, 0.3), (0.5, 0.5, 0.9), (0.2, 0.0, 0.7), (1.0, 0.0, 0.4))


def rest(kept: float, repaired: float, now: float) -> float:
    """The share of good responses at which the pull of a refiner rests."""
    changing = repaired + 1 - kept
    return repaired / changing if changing else now


def _one_step(kept: float, repaired: float, now: float) -> float:
    return kept * now + repaired * (1 - now)


def _applied(function: Any) -> list[float]:
    return [float(function(*case)) for case in CASES]


EXERCISES = {
    "11.1": Exercise(
        right=lambda: RESPONSES * LENGTH * (1 + SHARE),
        because="the policy writes 64 · 20 = 1280, and the refiner 8 · 20 = 160 more.",
        mistakes=(
            (lambda: 2 * RESPONSES * LENGTH, "That is with every response refined."),
            (lambda: RESPONSES * LENGTH, "Those are the policy's; the refiner writes as well."),
            (
                lambda: RESPONSES * LENGTH * SHARE,
                "Those are the refiner's. All 64 responses are sampled, refined or not.",
            ),
        ),
        otherwise="Count what the policy samples, then what the refiner writes for an eighth.",
    ),
    "11.2": Exercise(
        right=lambda: ["B", "A"],
        because="B keeps all and repairs enough; A changes nothing, so that its pull is zero on "
        "average: the control identity.",
        mistakes=(
            (
                lambda: ["D", "A"],
                "D repairs nearly everything and rewrites six of seven good responses as well.",
            ),
            (
                lambda: ["C", "A"],
                "C repairs more than B, but rewrites every second good response.",
            ),
            (
                lambda: ["A", "B"],
                "The other way round: who repairs nothing pulls nowhere.",
            ),
            (
                lambda: ["B", "D"],
                "D does pull, and hard; only in the wrong direction. Who pulls nowhere?",
            ),
        ),
        otherwise="First the one to take: it has to keep what is fine, and to repair. Then the one "
        "that never changes anything.",
    ),
    "11.3": Exercise(
        right=lambda: KEPT * GOOD + (1 - GOOD),
        because="0.8 · 0.9 are kept and 0.1 repaired: 0.82, less than the 0.9 before.",
        mistakes=(
            (lambda: KEPT * GOOD, "You left out the flawed ones, which are repaired."),
            (lambda: 1.0, "Every flaw is repaired, but one good response in five is spoilt."),
            (lambda: GOOD, "That is the policy's own share. The refiner changes it."),
            (lambda: KEPT, "Of the good ones that share stays good. How many are those of all?"),
        ),
        otherwise="Good afterwards are those that were good and are kept, and those that were not "
        "and are repaired.",
    ),
    "11.4": Exercise(
        right=lambda: rest,
        because="g = k g + r (1 − g) gives r / (r + 1 − k); with k = 1 and r = 0 every g does.",
        mistakes=(
            (
                lambda: _one_step,
                "That is where the pull leads to from `now`, in one step. Where does it rest?",
            ),
            (
                lambda: lambda kept, repaired, now: repaired / max(repaired + 1 - kept, 1e-9),
                "Right but for the refiner that changes nothing: there any share is at rest.",
            ),
            (
                lambda: lambda kept, repaired, now: kept,
                "That leaves out the flawed ones, which are repaired.",
            ),
        ),
        otherwise="Solve g = kept · g + repaired · (1 − g) for g.",
        view=_applied,
    ),
}
