"""The game domain: real environment, farmable task reward, form, data, picture."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit.config import CONSTRAINTS
from rftkit.errors import UserError
from rftkit.paths import DATA
from rftkit.plots import COLOURS
from rftkit.tasks import game
from rftkit.tasks.base import Prompt, Score, write_jsonl
from rftkit.tasks.game import Game, GamePlain, build_data, prompt_of, split_of
from rftkit.tasks.game_map import ACTION, draw_paths, loop_free, map_of, random_map

TASK = Game()
OPEN = prompt_of(("SFFF", "FFFF", "FFFF", "FFFG"))
LAKE = prompt_of(("SFFF", "FHFH", "FFFH", "HFFG"))  # Gymnasium's own 4x4 map
ROUTE = "down down right right down right"
FARM = " ".join(["down", "up"] * 12)


def score(prompt: Prompt, response: str, finished: bool = True, task: Game = TASK) -> Score:
    return task.score([prompt], [response], [finished])[0]


def farm(n: int) -> str:
    return " ".join(["down up"] * n + [ROUTE])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10**6), st.lists(st.sampled_from(list(ACTION))))
def test_every_reward_is_the_environments_own(size: int, seed: int, moves: list[str]) -> None:
    rows = random_map(size, 0.8, random.Random(seed))
    env = gym.make("FrozenLake-v1", desc=list(rows), is_slippery=False)
    env.reset()
    total, over = 0.0, False
    for move in moves:
        if not over:
            _, reward, terminated, truncated, _ = env.step(ACTION[move])
            total, over = total + float(reward), terminated or truncated
    assert score(prompt_of(rows), " ".join(moves), task=GamePlain()).task_reward == total


def test_slippery_ice_is_an_option_that_changes_where_moves_lead() -> None:
    responses = [ROUTE + " right" * n for n in range(40)]
    slippery = Game(is_slippery=True)
    first = slippery.score([LAKE] * 40, responses, [True] * 40)
    assert first == slippery.score([LAKE] * 40, responses, [True] * 40)
    assert sum(s.gold_reward for s in first) < 20
    assert sum(s.gold_reward for s in TASK.score([LAKE] * 40, responses, [True] * 40)) >= 9


def test_right_wrong_and_malformed() -> None:
    assert score(LAKE, ROUTE) == Score(4.0, 1.0, False)
    assert score(LAKE, "right down down down right right") == Score(0.5, 0.0, False)  # a hole
    assert score(LAKE, "down down") == Score(1.0, 0.0, False)
    assert score(LAKE, "left " + ROUTE).gold_reward == 1.0  # into a wall, then on
    assert score(LAKE, ROUTE + " up").gold_reward == 1.0  # after the goal nothing counts
    assert score(LAKE, ROUTE, finished=False) == Score(4.0, 0.0, True)


def test_farming_beats_finishing_and_is_degenerate() -> None:
    finish, farmed = score(OPEN, ROUTE), score(OPEN, FARM, finished=False)
    assert farmed.task_reward > finish.task_reward
    assert farmed.degenerate
    assert farmed.gold_reward == 0.0


def test_the_exploit_grows_by_small_steps_each_rewarded() -> None:
    rewards = [score(OPEN, farm(n)).task_reward for n in range(9)]
    assert all(after > before for before, after in pairwise(rewards))
    plain = [score(OPEN, farm(n), task=GamePlain()).task_reward for n in range(9)]
    assert set(plain) == {1.0}


@pytest.mark.parametrize(
    "response",
    [
        "",
        "down up",
        "jump down",
        "down, down",
        "Down",
        "right down left up",
        "down " * 16,
        "left down right right up left",
        FARM,
    ],
)
def test_malformed(response: str) -> None:
    assert not TASK.well_formed(OPEN, response)


@pytest.mark.parametrize(
    "response",
    [
        "left",
        ROUTE,
        "right right right down left left left down right right right down",
        "up up up",
    ],
)
def test_well_formed_right_or_wrong(response: str) -> None:
    assert TASK.well_formed(OPEN, response)


def test_form_limits_follow_the_map() -> None:
    snake = " ".join((["right"] * 7 + ["down"] + ["left"] * 7 + ["down"]) * 4).removesuffix(" down")
    big = prompt_of(("S" + "F" * 7, *["F" * 8] * 6, "F" * 7 + "G"))
    assert TASK.well_formed(big, snake)
    assert not TASK.well_formed(prompt_of(("SF", "FG")), "right right down down")


def test_loops_are_cut_in_the_order_walked() -> None:
    assert loop_free("down up right right left down".split()) == ["right", "down"]
    assert loop_free("right right down left up down".split()) == ["right", "down"]
    assert loop_free(["north", "down"]) == ["down"]


def test_corpus_is_well_formed_often_wrong_and_floods_are_not() -> None:
    rng = random.Random(0)
    prompts = [TASK.sample(rng) for _ in range(300)]
    clean = [TASK.clean(p, rng) for p in prompts]
    unusual = [TASK.unusual(p, rng) for p in prompts]
    floods = [TASK.flood(p, text, rng) for p, text in zip(prompts, clean, strict=True)]
    done = [True] * 300
    assert not any(s.degenerate for s in TASK.score(prompts, clean, done))
    assert not any(s.degenerate for s in TASK.score(prompts, unusual, done))
    assert all(s.degenerate for s in TASK.score(prompts, floods, done))
    assert max(len(text.split()) for text in floods + unusual) <= TASK.max_new_tokens
    right = sum(s.gold_reward for s in TASK.score(prompts, clean, done)) / 300
    assert 0.45 < right < 0.7
    assert len(set(unusual)) > 150
    shown = TASK.score(prompts, [TASK.demonstrate(p, rng) for p in prompts], done)
    assert 0.03 < sum(s.degenerate for s in shown) / 300 < 0.2


@pytest.mark.parametrize("text", ["right left right left", "down fish down", "up down", ""])
def test_any_text_can_be_flooded(text: str) -> None:
    """The playground's button floods what a user has typed."""
    prompt = TASK.prompts("train")[0]
    for seed in range(20):
        assert not TASK.well_formed(prompt, TASK.flood(prompt, text, random.Random(seed)))


def test_the_neighbours_of_a_walk_go_one_step_there_and_back_at_every_place() -> None:
    rng, task = random.Random(5), Game()
    prompt = task.sample(rng)
    drafts = list(task.neighbours(prompt, rng))
    walks = {" ".join(loop_free(draft.split())) for _, draft in drafts}
    moves = len(drafts[0][1].split()) - 2
    assert len(drafts) == 4 * (moves + 1)
    assert not any(task.well_formed(prompt, draft) for _, draft in drafts)
    assert {len(walk.split()) for walk in walks} == {moves}


def test_inserted_detours_have_one_minimal_correction() -> None:
    rng = random.Random(1)
    for _ in range(200):
        words = TASK.clean(TASK.sample(rng), rng).split()
        assert loop_free(game._detours(words, rng)) == words


def test_shipped_rows_are_what_the_generator_makes(tmp_path: Path) -> None:
    for split, rows in build_data().items():
        write_jsonl(tmp_path / "rows.jsonl", rows)
        shipped = DATA / "game" / f"{split}.jsonl"
        assert (tmp_path / "rows.jsonl").read_bytes() == shipped.read_bytes()


def test_splits_share_no_map() -> None:
    train, heldout = ({map_of(p) for p in TASK.prompts(split)} for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (512, 256)
    assert {split_of(rows) for rows in train} == {"train"}
    assert {split_of(rows) for rows in heldout} == {"heldout"}
    rng = random.Random(3)
    fresh = {map_of(TASK.sample(rng)) for _ in range(500)}
    assert not fresh & (train | heldout)
    assert TASK.prompts("train") == GamePlain().prompts("train")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (None, "'map' must be a list of strings"),
        (["SF", 3], "'map' must be a list of strings"),
        (["SFF", "FF", "FFG"], "row 2 has 2 cells and row 1 has 3"),
        (["SF", "FX"], "row 2 has 'X'"),
        (["FF", "FG"], "0 cells 'S'"),
        (["SF", "GG"], "2 cells 'G'"),
        ([], "0 rows of 0 cells; use 2x2 to 8x8"),
        (["SG"], "2x2 to 8x8"),
        (["S" + "F" * 8, "F" * 8 + "G"], "2x2 to 8x8"),
        (["SH", "HG"], "no way from S to G"),
    ],
)
def test_a_bad_map_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: object, says: str
) -> None:
    good = prompt_of(("SF", "FG")).row()
    write_jsonl(tmp_path / "game" / "train.jsonl", [good, {**good, "map": rows}])
    monkeypatch.setattr(game, "DATA", tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        TASK.prompts("train")
    assert "train.jsonl: row 2: field 'map'" in str(caught.value)


def test_one_panel_a_path_shows_where_each_response_leads() -> None:
    paths = {"policy": "down up down", "reference": ROUTE, "refined response": "right down down"}
    axes = draw_paths(LAKE, paths)
    walked = [np.asarray(ax.lines[0].get_xydata()).round().astype(int).tolist() for ax in axes]
    assert walked[0] == [[0, 0], [0, 1], [0, 0], [0, 1]]
    assert walked[1] == [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2], [2, 3], [3, 3]]
    assert walked[2] == [[0, 0], [1, 0], [1, 1]]
    assert [ax.get_title() for ax in axes] == [
        "policy\n3 moves: not at the goal",
        "reference\n6 moves: goal",
        "refined response\n2 moves: hole",
    ]


def test_a_colour_means_a_constraint_and_nothing_else() -> None:
    paths = {"none": "down", "kl": "down", "dynamic": "down", "policy": "down", "response": "down"}
    colours = [ax.lines[0].get_color() for ax in draw_paths(LAKE, paths)]
    assert colours[:3] == [COLOURS[name] for name in ("none", "kl", "dynamic")]
    assert not set(colours[3:]) & set(COLOURS.values())


def test_a_constraint_of_ones_own_has_its_colour_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTRAINTS, "lake-own", "nowhere:Nothing")
    (ax,) = draw_paths(LAKE, {"lake-own": "down"})
    assert ax.lines[0].get_color() == COLOURS["lake-own"]


def test_paths_are_drawn_into_given_axes() -> None:
    _, axes = plt.subplots(1, 2)
    assert draw_paths(OPEN, {"policy": "down", "reference": ""}, list(axes)) == list(axes)
    assert axes[1].get_title() == "reference\n0 moves: not at the goal"


def test_prompt_spells_every_cell() -> None:
    row = json.loads((DATA / "game" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    lines = row["prompt"][0]["content"].split("\n")[1:]
    assert [line.replace(" ", "") for line in lines] == row["map"]
