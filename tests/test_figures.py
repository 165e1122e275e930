"""The lessons' pictures, through the data behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from rftkit.config import CONSTRAINTS
from rftkit.figures import OTHERS, bars, canvas, colour, lines, show
from rftkit.plots import COLOURS


def test_an_own_constraint_has_one_colour_from_first_to_last() -> None:
    first = colour("figures-own")
    assert first == COLOURS["figures-own"] == colour("figures-own")
    assert first not in {COLOURS[name] for name in CONSTRAINTS}
    assert colour("reference") == OTHERS["reference"]


def test_a_canvas_has_rows_and_columns_in_the_lessons_style() -> None:
    _, grid = canvas(rows=3, columns=2)
    assert grid.shape == (3, 2)
    for axis in grid.flat:
        assert not axis.spines["top"].get_visible()
        assert axis.xaxis.get_gridlines()[0].get_visible()
    assert canvas(columns=2)[1].shape == (2,)


def test_bars_show_each_group_in_its_colour() -> None:
    _, axis = canvas()
    bars(axis, ["c.", "t."], {"π": ([0.2, 0.8], "none"), "q": ([0.5, 0.5], "dynamic")}, "share")
    for container, values, name in zip(
        axis.containers, ([0.2, 0.8], [0.5, 0.5]), ("none", "dynamic"), strict=True
    ):
        assert [bar.get_height() for bar in container] == values
        assert {to_hex(bar.get_facecolor()).upper() for bar in container} == {COLOURS[name]}
    assert [label.get_text() for label in axis.get_xticklabels()] == ["c.", "t."]


def test_lines_are_named_at_their_ends_apart_from_each_other() -> None:
    _, axis = canvas()
    curves = {"a": ([0, 1.00], "kl"), "b": ([0, 1.01], "kl"), "c": ([0, 3.0], "dynamic")}
    lines(axis, [0, 10], curves, "step", "reward")
    np.testing.assert_allclose([line.get_ydata()[-1] for line in axis.lines], [1.0, 1.01, 3.0])
    places = {text.get_text(): text.xy for text in axis.texts}
    assert places["a"] == (10, 1.0)
    assert places["b"][1] > 1.1
    assert places["c"] == (10, 3.0)


def test_a_picture_carries_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: shown.append((a, k)))
    figure, _ = canvas()
    show(figure, "a text")
    assert shown == [((figure,), {"metadata": {"image/png": {"alt": "a text"}}})]
