"""What the study's figures share: reading a record, drawing a mean with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from rftkit.metrics import bootstrap_ci, mean
from rftkit.study.analysis import DEGENERATE, GOLD
from rftkit.study.plan import Record


def span(values: Sequence[float]) -> tuple[float, list[list[float]]]:
    """Mean, and its 95% interval as matplotlib's error bars take it: below and above."""
    middle, (low, high) = mean(values), bootstrap_ci(values)
    return middle, [[middle - low], [high - middle]]


def gold_of(record: Record) -> float:
    """Gold reward at the end."""
    return float(GOLD.read(record) or 0.0)


def degenerate_of(record: Record) -> float:
    """Degenerate share at the end."""
    return float(DEGENERATE.read(record) or 0.0)


def plain(axis: Axes) -> None:
    """No frame, a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
