"""The checks behind the lessons' exercises: `check("01.2", answer)`.

An answer is right, "because", or gets a hint aimed at the mistake that leads to it. The right
answer and the typical wrong ones are computed by the kit's own functions. One file a lesson.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from rftkit.errors import UserError

TOLERANCE = 5e-3  # relative: three digits are enough
NEARLY = 3e-2


@dataclass(frozen=True)
class Exercise:
    """One exercise; its question stands in the lesson.

    right: computes the right answer. mistakes: what a typical mistake leads to, and the hint for
    it. otherwise: the hint for any other answer. view: what is compared of an answer; for a
    function that the reader writes, its values.
    """

    right: Callable[[], Any]
    because: str
    mistakes: tuple[tuple[Callable[[], Any], str], ...]
    otherwise: str
    view: Callable[[Any], Any] = lambda answer: answer


@dataclass(frozen=True)
class Verdict:
    """What `check` says; a notebook shows the text."""

    right: bool
    text: str

    def __repr__(self) -> str:
        return self.text


def check(name: str, answer: Any) -> Verdict:
    """Judge an answer to the exercise `name`, as "01.2"; None means not answered yet.

    Raises UserError for an exercise that there is not.
    """
    known = exercises()
    if name not in known:
        raise UserError(f"exercise {name!r} is unknown; choose one of {', '.join(known)}")
    if answer is None:
        return Verdict(False, f"{name} is open: put your answer in place of None.")
    exercise = known[name]
    try:
        given = exercise.view(answer)
    except Exception as error:  # the reader's own function may fail in any way
        problem = f"{type(error).__name__}: {error}"
        return Verdict(False, f"{name} stops with {problem}. {exercise.otherwise}")
    if _same(given, exercise.view(exercise.right()), TOLERANCE):
        return Verdict(True, f"{name} right, because {exercise.because}")
    for mistake, hint in exercise.mistakes:
        if _same(given, exercise.view(mistake()), TOLERANCE):
            return Verdict(False, f"{name} not yet. {hint}")
    if _same(given, exercise.view(exercise.right()), NEARLY):
        return Verdict(False, f"{name} nearly: give three digits.")
    return Verdict(False, f"{name} not yet. {exercise.otherwise}")


def exercises() -> dict[str, Exercise]:
    """All exercises by name, in the order of the lessons."""
    found: dict[str, Exercise] = {}
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        found |= import_module(module.name).EXERCISES
    return found


def _same(given: Any, wanted: Any, tolerance: float) -> bool:
    """Equal words, or numbers within the tolerance."""
    if isinstance(wanted, str):
        return isinstance(given, str) and given.strip().casefold() == wanted.casefold()
    if isinstance(wanted, list) and all(isinstance(word, str) for word in wanted):
        return isinstance(given, list) and given == wanted
    try:
        a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (given, wanted))
    except (TypeError, ValueError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance / 10)
