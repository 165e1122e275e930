"""The figure shows the records: asserted through the data behind the lines."""

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from rftkit import RunConfig
from rftkit.plots import COLOURS, PANELS, curves, refining_cost, save, series, smooth
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


def test_a_name_stands_at_its_line_on_any_scale(tmp_path: Path) -> None:
    """On the logarithmic panel 15 is far above 0.5, however near on a linear one up to 300."""
    ends = {"none": 300.0, "kl": 0.5, "dynamic": 15.0}
    runs = {}
    for name, kl in ends.items():
        run = RunFolder.create(tmp_path / name, RunConfig(constraint=name))
        for step in range(3):
            row = dict.fromkeys([key for key, _ in PANELS], 0.5) | {"step": step, "coef": 1.0}
            run.log(row | {"kl": kl * step / 2})
        runs[name] = [run]
    figure = curves(runs, "dialogue", 1.5)
    figure.draw_without_rendering()
    in_panel = {axis.get_title(loc="left"): axis for axis in figure.axes}
    logarithmic = _places(in_panel[dict(PANELS)["kl"]])
    for label, (line, text) in logarithmic.items():
        assert text == pytest.approx(line, abs=2), label
    names = sorted(text for _, text in _places(in_panel[dict(PANELS)["degenerate"]]).values())
    assert all(b - a > 8.5 for a, b in pairwise(names))  # three lines at one place, 9-point type


def _places(axis: Axes) -> dict[str, tuple[float, float]]:
    """Heights in points of the end of each line and the middle of its name, from bottom to top."""
    points = 72 / axis.figure.dpi
    heights = {}
    for line in axis.lines:
        for text in axis.texts:
            if text.get_color() == line.get_color():
                end = axis.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1]))[1]
                box = text.get_window_extent()
                heights[text.get_text()] = (end * points, (box.y0 + box.y1) / 2 * points)
    return heights


def test_the_gold_maximums_name_is_above_its_line(runs) -> None:
    figure = curves(runs, "dialogue", 1.5)
    figure.draw_without_rendering()
    gold = figure.axes[0]
    (text,) = [text for text in gold.texts if text.get_text() == "gold maximum"]
    line = gold.transData.transform((0, 1.5))[1]
    assert line < text.get_window_extent().y0
    assert text.get_window_extent().y1 < gold.get_window_extent().y1


def test_smoothing_keeps_a_straight_line_straight_inside() -> None:
    smoothed = smooth(np.arange(7.0)[None], 3)[0]
    np.testing.assert_allclose(smoothed, [0.5, 1, 2, 3, 4, 5, 5.5])
