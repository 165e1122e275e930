"""The figure shows the records: asserted through the data behind the lines."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from rftkit import RunConfig
from rftkit.plots import COLOURS, PANELS, curves, refining_cost, save, series
from rftkit.runs import RunFolder

NAMES = ("none", "kl", "dynamic")


@pytest.fixture(params=[1, 2], ids=["one seed", "two seeds"])
def runs(tmp_path: Path, request) -> dict[str, list[RunFolder]]:
    made: dict[str, list[RunFolder]] = {}
    for name in NAMES:
        for seed in range(request.param):
            run = RunFolder.create(tmp_path / f"{name}{seed}", RunConfig(constraint=name))
            made.setdefault(name, []).append(run)
            for step in range(7):
                value = step + 10 * seed
                row = dict.fromkeys([key for key, _ in PANELS]) | {"step": step, "coef": 0.5}
                row |= {"task_reward": value, "kl": value, "strength": 0.5 if name != "none" else 0}
                row |= {"edit_ratio": 0.1 if name == "dynamic" else None}
                row |= {"rounds": 1.0 + step, "refined_length": 20.0}
                if step % 3 == 0:
                    row |= {"gold_reward": value / 10, "degenerate": 0.2}
                run.log(row)
    return made


def test_series_takes_the_steps_where_a_metric_was_measured(runs) -> None:
    steps, values = series(runs["kl"], "gold_reward")
    assert steps.tolist() == [0, 3, 6]
    assert values.shape == (len(runs["kl"]), 3)
    np.testing.assert_allclose(values[0], [0, 0.3, 0.6])


def test_each_panel_has_each_constraint_once_in_its_colour(runs) -> None:
    figure = curves(runs, "dialogue", 1.5)
    shown = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert list(shown) == [title for _, title in PANELS]
    for key, title in PANELS:
        expected = {"edit_ratio": ["dynamic"], "strength": ["kl", "dynamic"]}.get(key, list(NAMES))
        colours = [line.get_color() for line in shown[title].lines if line.get_color() != "#999999"]
        assert colours == [COLOURS[name] for name in expected]
        labels = {text.get_text() for text in shown[title].texts} - {"gold maximum"}
        assert len(labels) == len(expected)
    mean = shown[PANELS[0][1]].lines[0].get_ydata()
    np.testing.assert_allclose(mean, series(runs["none"], "gold_reward")[1].mean(0))


def test_the_picture_is_written(runs, tmp_path: Path) -> None:
    save(tmp_path / "curves.png", curves(runs, "dialogue", 1.5))
    assert (tmp_path / "curves.png").stat().st_size > 20_000
    assert not plt.get_fignums()


def test_refining_cost_shows_each_step_of_each_seed(runs) -> None:
    figure = refining_cost(runs["dynamic"])
    by_edits, by_step = figure.axes[:2]
    (dots,) = by_edits.collections
    seeds = len(runs["dynamic"])
    assert dots.get_offsets()[:, 1].tolist() == [1.0 + step for step in range(7)] * seeds
    assert by_step.lines[0].get_ydata().tolist() == [20.0] * 7


def test_rewards_below_zero_stay_on_the_axes(tmp_path: Path) -> None:
    """A user's own reward may be negative; its labels used to break the layout."""
    run = RunFolder.create(tmp_path / "run", RunConfig(constraint="none"))
    row = {"gold_reward": -2.0, "degenerate": 1.0, "kl": 0.0, "edit_ratio": 0.1, "strength": 0.5}
    for step in range(3):
        run.log({"step": step, "coef": 0.0, "task_reward": -30.0 - step, **row})
    gold, task_reward = curves({"none": [run]}, "own", 1.0).axes[:2]
    assert gold.get_ylim()[0] <= -2
    assert task_reward.get_ylim()[0] <= -31
