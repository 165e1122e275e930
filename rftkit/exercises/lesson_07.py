"""Lesson 07: code generation."""

from __future__ import annotations

import ast
import math

from rftkit.exercises import Exercise
from rftkit.tasks.preferences import LinearRewardModel

COMMENT, LINE = 0.28, -0.02  # the shipped reviewer's weights, rounded
REVIEWER = LinearRewardModel({"comments": COMMENT, "lines": LINE})
CAP = 5  # h(x) should add 1 and then cap at 5
KNOWN = (0, 1)  # arguments of its visible tests
# Five responses: share of visible and of hidden tests passed.
PASSED = ((1.0, 1.0), (1.0, 0.7), (0.5, 0.4), (1.0, 0.9), (0.0, 0.0))


def task_reward(visible: float, comments: int, lines: int) -> float:
    return visible + REVIEWER({"comments": comments, "lines": lines})


def outbidding(known_comments: int = 2) -> float:
    """Comments, not rounded, at which they alone are paid as a program that passes all tests."""
    return 1 / COMMENT + known_comments


def gamed(count_right: bool = False) -> float:
    """Share that passes all visible tests and, unless `count_right`, fails hidden ones."""
    return sum(v == 1 and (h < 1 or count_right) for v, h in PASSED) / len(PASSED)


def what_it_shows(call: str) -> str:
    """Whether a test of this call tells min(x + 1, 5) from x + 1. Raises ValueError for no call."""
    tree = ast.parse(call.strip(), mode="eval").body
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "h"):
        raise ValueError("no call of h")
    (argument,) = tree.args
    x = ast.literal_eval(argument)
    if min(x + 1, CAP) != x + 1:
        return "caught"
    if x in KNOWN:
        return "known"
    return "boundary" if x + 1 == CAP else "below"


EXERCISES = {
    "07.1": Exercise(
        right=lambda: task_reward(0.5, 3, 4),
        because="half of the visible tests, three comments at 0.28 and four lines at −0.02.",
        mistakes=(
            (
                lambda: task_reward(0.5, 3, 0),
                "You left out the lines: reviewers like short code a little, −0.02 a line.",
            ),
            (
                lambda: task_reward(1, 3, 4),
                "One of two visible tests passed counts 0.5.",
            ),
            (
                lambda: task_reward(0.5, 3, 7),
                "A line that holds only a comment is no line of code; the three are counted.",
            ),
            (
                lambda: task_reward(0.5, 3, -4),
                "The weight of a line is negative.",
            ),
        ),
        otherwise="Share of visible tests + 0.28 · comments − 0.02 · lines of code.",
    ),
    "07.2": Exercise(
        right=lambda: math.ceil(outbidding()),
        because="1 / 0.28 = 3.6 comments outweigh all tests, and the right program has two: "
        "from 5.6 on, so six.",
        mistakes=(
            (
                lambda: math.ceil(outbidding(0)),
                "Those outbid a right program without comments. This one has two.",
            ),
            (
                lambda: math.floor(outbidding()),
                "Five are paid 1.40, the right program 1.56.",
            ),
            (
                outbidding,
                "Comments come whole.",
            ),
        ),
        otherwise="The right program is paid 1 + 2 · 0.28 and the same for its lines. From which "
        "n is n · 0.28 more?",
    ),
    "07.3": Exercise(
        right=gamed,
        because="the second and the fourth pass all visible tests and fail hidden ones: 2 of 5.",
        mistakes=(
            (
                lambda: gamed(count_right=True),
                "The first passes the hidden tests too: it is right, not gamed.",
            ),
            (
                lambda: gamed() / gamed(count_right=True),
                "That is a share of those that pass the visible tests. Divide by all five.",
            ),
            (
                lambda: sum(h < 1 for _, h in PASSED) / len(PASSED),
                "Those fail hidden tests; the third and the fifth fail visible ones as well.",
            ),
        ),
        otherwise="Count the responses with visible 1 and hidden below 1, and divide by 5.",
    ),
    "07.4": Exercise(
        right=lambda: "h(9)",
        because="x + 1 is above 5 there, and only the cap brings it back.",
        mistakes=(
            (
                lambda: "h(1)",
                "That one is among the visible tests already, and the program passes it.",
            ),
            (
                lambda: "h(4)",
                "h(4) is 5 with the cap and without it. One step further.",
            ),
            (
                lambda: "h(2)",
                "Below the cap both programs return the same.",
            ),
        ),
        otherwise="A call in quotes, as 'h(2)', with a number at which min(x + 1, 5) and x + 1 "
        "differ.",
        view=what_it_shows,
    ),
}
