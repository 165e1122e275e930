"""Lesson 08: the game."""

from __future__ import annotations

from rftkit.exercises import Exercise
from rftkit.tasks.game import BACK, STEP, Game, loop_free, prompt_of

ROWS = ("SFF", "FHF", "FFG")
STRAY = "right left right right down down"
PACING = "right left " * 10 + "right right down down"
TOKENS = 24  # the longest response
WALKS = (
    "right right down down",
    "right left down down",
    "right down left up right right",
    "right down up left down down",
    "down up down up",
)


def task_reward(moves: str) -> float:
    (score,) = Game().score([prompt_of(ROWS)], [moves], [True])
    return score.task_reward


def by_potential(steps_nearer: int) -> float:
    """The goal, and the bonus for the net way that a walk came nearer."""
    return 1 + Game.bonus * steps_nearer


def least_bonus(route: int, paid_on_route: bool = True) -> float:
    """Bonus at which to and fro pays as much as the goal `route` steps away."""
    return 1 / (TOKENS / 2 - route * paid_on_route)


def no_steps_back(words: list[str]) -> list[str]:
    """Cuts a move and its opposite next to it, and no wider loop."""
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] == BACK[word]:
            kept.pop()
        else:
            kept.append(word)
    return kept


def one_pass_only(words: list[str]) -> list[str]:
    """Cuts a move and its opposite where they stand in the list as it was."""
    kept, i = [], 0
    while i < len(words):
        if i + 1 < len(words) and words[i + 1] == BACK[words[i]]:
            i += 2
        else:
            kept.append(words[i])
            i += 1
    return kept


def straight_there(words: list[str]) -> list[str]:
    """A shortest walk to the same place, which may lead another way."""
    counts = {word: words.count(word) for word in STEP}
    return [w for w in STEP for _ in range(max(0, counts[w] - counts[BACK[w]]))]


EXERCISES = {
    "08.1": Exercise(
        right=lambda: task_reward(STRAY),
        because="five of the six steps come nearer, 0.5 each, and the goal pays 1. The step back "
        "cost nothing and could be earned again.",
        mistakes=(
            (
                lambda: by_potential(4),
                "Four is how much nearer it came in all; the step back is not taken off.",
            ),
            (
                lambda: task_reward(STRAY) - 1,
                "That is the bonus. The goal pays 1 as well.",
            ),
            (
                lambda: by_potential(6),
                "The step left leads away: it is not paid.",
            ),
        ),
        otherwise="Write the distance to G beside each cell (S is 4 away), count the steps after "
        "which it is smaller, times 0.5, and add 1 for the goal.",
    ),
    "08.2": Exercise(
        right=lambda: by_potential(4),
        because="every step left takes back what the step right was paid; what is left is the way "
        "from 4 to 0, and the goal.",
        mistakes=(
            (
                lambda: task_reward(PACING),
                "That is the bonus of the task: ten steps to the right paid, none to the left.",
            ),
            (
                lambda: by_potential(4) - 1,
                "That is the shaping. The goal pays 1 as well.",
            ),
            (
                lambda: by_potential(24),
                "Steps away pay −0.5 here.",
            ),
        ),
        otherwise="Each step pays 0.5 · (distance before − distance after). Add them up: all "
        "distances in between cancel.",
    ),
    "08.3": Exercise(
        right=lambda: least_bonus(4),
        because="to and fro earns 12 b, the route 1 + 4 b; they are equal at b = 1/8.",
        mistakes=(
            (
                lambda: least_bonus(4, paid_on_route=False),
                "The route is paid the bonus too: four steps nearer.",
            ),
            (
                lambda: 1 / (TOKENS - 4),
                "Of 24 moves to and fro, only every second one comes nearer.",
            ),
            (
                lambda: Game.bonus,
                "That is the task's bonus, four times too much. Solve 12 b = 1 + 4 b.",
            ),
        ),
        otherwise="Write down what 24 moves to and fro earn and what the route earns, both with b, "
        "and set them equal.",
    ),
    "08.4": Exercise(
        right=lambda: loop_free,
        because="each time the walk comes to a place again, all since then is cut, however wide "
        "the loop, and the rest stays move by move.",
        mistakes=(
            (
                lambda: no_steps_back,
                "Steps there and back are gone, but right down left up is a loop as well.",
            ),
            (
                lambda: one_pass_only,
                "Once a pair is cut, others come to stand side by side: they are loops as well.",
            ),
            (
                lambda: straight_there,
                "It ends in the right place, but on another way: what is no loop must stay.",
            ),
        ),
        otherwise="A function of a list of moves: keep a list of the places so far; at a place "
        "that is in it, go back to that point in both lists.",
        view=lambda function: [" ".join(function(walk.split())) for walk in WALKS],
    ),
}
