"""The lessons' pictures: bars over the toy's responses, lines with their names at the end.

Colours mean constraints, as in plots.py. `show` puts a figure into the notebook with a text for
those who cannot see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rftkit.plots import COLOURS, STYLES

# What is no constraint: where training starts, and where it would end.
OTHERS = {"reference": "#BBBBBB", "optimum": "#333333"}
Curve = tuple[Any, str]  # values [n], and the constraint that gives them colour and style


def colour(name: str) -> str:
    """The colour of a constraint, also of one's own, or of a name in OTHERS."""
    return OTHERS.get(name) or COLOURS[name]


def show(figure: Figure, alt: str) -> None:
    """Display the figure below the cell, with `alt` as its text."""
    from IPython.display import display

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def canvas(
    columns: int = 1, width: float = 7.0, height: float = 3.2, rows: int = 1
) -> tuple[Figure, Any]:
    """A figure and its axes (one, an array [columns] or [rows, columns]) in the lessons' style.

    Width and height of the whole figure, in inches.
    """
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained")
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def bars(axis: Axes, names: Sequence[str], groups: Mapping[str, Curve], ylabel: str) -> None:
    """Grouped bars [n] over `names` [n]; a group's constraint may be a name in OTHERS."""
    width = 0.8 / len(groups)
    for i, (label, (values, constraint)) in enumerate(groups.items()):
        place = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        axis.bar(place, np.asarray(values), width, label=label, color=colour(constraint))
    # a name may be a model's text, where $ and \ mean themselves
    axis.set_xticks(range(len(names)), names, family="monospace", parse_math=False)
    axis.set_ylabel(ylabel)
    axis.grid(visible=False, axis="x")
    if len(groups) > 1:
        axis.legend(frameon=False)


def lines(
    axis: Axes,
    x: Any,
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    bottom: float | None = None,
) -> None:
    """Lines over x [n], each named at its end; bottom: where the y axis begins, if given."""
    for values, constraint in curves.values():
        style = STYLES.get(constraint, ":")
        axis.plot(np.asarray(x), np.asarray(values), style, color=colour(constraint), linewidth=2)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.margins(x=0.02)
    axis.set_ylim(bottom=bottom)
    label_ends(axis, float(x[-1]), {k: (float(v[-1]), c) for k, (v, c) in curves.items()})


def label_ends(axis: Axes, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names beside the points (x, value), moved apart where they would overlap."""
    low, high = axis.get_ylim()
    gap = 0.075 * (high - low)
    last = -np.inf
    for label, (value, constraint) in sorted(ends.items(), key=lambda item: item[1][0]):
        last = max(value, last + gap)
        axis.annotate(
            label,
            (x, last),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour(constraint),
            annotation_clip=False,
            parse_math=False,
        )
