"""Functions that lessons 06 to 08 write out are the package's, as for the lessons before."""

from __future__ import annotations

import random

import pytest
from test_lessons import written

from rftkit.metrics import bootstrap_ci
from rftkit.tasks import load_task
from rftkit.tasks.code import features
from rftkit.tasks.game import Game, loop_free, prompt_of
from rftkit.tasks.game_map import STEP, play


def test_lesson_06_writes_the_kits_bootstrap() -> None:
    (by_hand,) = written("06", "bootstrap_by_hand")
    for values in ([0.3, 1.2], [1.48, 1.24, 1.5], [0.0, 0.0, 0.7]):
        assert by_hand(values) == pytest.approx(bootstrap_ci(values))


def test_lesson_07_writes_the_kits_task_reward() -> None:
    task = load_task("code")
    (by_hand,) = written("07", "task_reward_by_hand")
    by_hand.__globals__["task"] = task
    prompt = task.prompts("heldout")[0]
    name = prompt.columns["name"]
    for body in ("    return 1", "    # one\n    return 1 # two", "    # # #\n\n    return None"):
        program = f"def {name}(x):\n{body}"
        (score,) = task.score([prompt], [program], [True])
        seen = features(program)
        reward = by_hand(score.visible, seen["comments"], seen["lines"])
        assert reward == pytest.approx(score.task_reward)


def test_lesson_08_writes_the_kits_bonus_and_loop_erasure() -> None:
    bonus, potential, erase = written(
        "08", "bonus_by_hand", "potential_by_hand", "erase_loops_by_hand"
    )
    rows, far = ("SFF", "FHF", "FFG"), (4, 3, 2, 3, 9, 1, 2, 1, 0)
    rng = random.Random(0)
    for _ in range(50):
        moves = rng.choices(list(STEP), k=rng.randint(1, 12))
        walk = play(rows, " ".join(moves))
        distances = [far[cell] for cell in walk.cells]
        (score,) = Game().score([prompt_of(rows)], [" ".join(moves)], [True])
        assert bonus(distances) + walk.reward == pytest.approx(score.task_reward)
        assert potential(distances) == pytest.approx(0.5 * (4 - distances[-1]))
        assert erase(moves) == loop_free(moves)
