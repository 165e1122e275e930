"""Figures of "why" and "limits": how much of the constraint is needed, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rftkit.metrics import mean
from rftkit.plots import COLOURS, LABELS
from rftkit.study.analysis import (
    DEGENERATE_BAR,
    TUNED,
    as_tuned,
    by_dose,
    by_refiner,
    by_setting,
)
from rftkit.study.marks import degenerate_of, gold_of, plain, span
from rftkit.study.methods import DOSES
from rftkit.study.plan import Protocol, Record, Records
from rftkit.tasks import load_task

# From left to right, with their markers.
OFFSETS = {"none": "s", "kl": "^", "identity": "D", "dynamic": "o"}


def doses(protocol: Protocol, records: Records) -> Figure:
    """Gold reward over what is turned, a row a task and a column a group of doses."""
    found = {t: by_dose(protocol, t, records) for t in protocol.tasks}
    tasks = [task for task, groups in found.items() if groups]
    groups = [group for group in DOSES if any(group in found[task] for task in tasks)]
    lines, columns = max(1, len(tasks)), max(1, len(groups))
    figure, grid = plt.subplots(
        lines, columns, figsize=(1 + 3.4 * columns, 0.8 + 2.7 * lines), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, task in zip(grid, tasks, strict=False):
        gold_max = load_task(task).gold_max
        for axis, group in zip(axes, groups, strict=True):
            if not (points := found[task].get(group)):
                axis.axis("off")
                continue
            _doses(axis, points, DOSES[group][1])
            axis.set_xlabel(fill(DOSES[group][0], 36))
            axis.axhline(gold_max, color="#999999", linewidth=1, zorder=0)
            axis.set_ylim(-0.04 * gold_max, 1.08 * gold_max)
            plain(axis)
        axes[0].set_title(task, fontsize=11, loc="left")
        axes[0].set_ylabel("gold reward at the end")
    told = f"hollow: over {DEGENERATE_BAR:.0%} degenerate; grey: gold maximum"
    figure.suptitle(f"how much of the dynamic constraint is needed ({told})", fontsize=13)
    return figure


def _doses(axis: Axes, points: Mapping[float, Mapping[int, Record]], own: float) -> None:
    """Gold reward by dose; hollow where responses degenerate."""
    doses = sorted(points)
    golds = {dose: [gold_of(r) for r in points[dose].values()] for dose in doses}
    places = range(len(doses))  # evenly spaced: doses are steps of a scale, and one may be 0
    means = [mean(golds[dose]) for dose in doses]
    axis.plot(places, means, color=COLOURS["dynamic"], linewidth=1.5, zorder=1)
    for place, dose in zip(places, doses, strict=True):
        degenerate = mean([degenerate_of(r) for r in points[dose].values()]) > DEGENERATE_BAR
        axis.errorbar(
            place, *span(golds[dose]), fmt="o", color=COLOURS["dynamic"],
            markerfacecolor="white" if degenerate else COLOURS["dynamic"], capsize=3,
        )  # fmt: skip
    axis.set_xticks(list(places), [f"{d:g}" + ("\ntuned" if d == own else "") for d in doses])
    axis.margins(x=0.08)


def refiners(protocol: Protocol, records: Records, measured: Sequence[Record]) -> Figure:
    """Gold reward of each policy over what its refiner does to good and to malformed drafts.

    Colour: the constraint, so that controls stand out. Marker: the task.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    markers = dict(zip(protocol.tasks, "os^", strict=False))
    size: dict[str, Any] = {"markersize": 7, "alpha": 0.75}
    drawn = set()
    for row, run in by_refiner(protocol, records, measured):
        gold = gold_of(run) / load_task(row["task"]).gold_max
        name = run["config"]["constraint"]
        drawn.add(name)
        look = size | {"color": COLOURS[name], "marker": markers[row["task"]], "clip_on": False}
        if degenerate_of(run) > DEGENERATE_BAR:
            look["markerfacecolor"] = "white"
        for axis, key in zip(axes, ("kept_clean", "fixed_neighbours"), strict=True):
            axis.plot(row[key], gold, **look)
    kept, repaired = axes
    kept.set_xlabel("share of good drafts that its refiner returns verbatim")
    repaired.set_xlabel("share of flaws that its refiner repairs")
    kept.set_ylabel("gold reward at the end, share of its maximum")
    for axis in axes:
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        plain(axis)
    for task, marker in markers.items():
        kept.plot([], [], marker, color="#444444", label=task, **size)
    for method in protocol.methods:
        if (name := method.name) in drawn:
            repaired.plot([], [], "o", color=COLOURS[name], label=method.label, **size)
    for axis in axes:
        axis.legend(frameon=False, loc="upper left")
    told = f"hollow: over {DEGENERATE_BAR:.0%} degenerate"
    figure.suptitle(f"what makes a refiner good enough ({told})", fontsize=13)
    return figure


def limits(protocol: Protocol, records: Records) -> Figure:
    """Settings where the dynamic constraint should fail, task by task, beside the tuned methods.

    Above gold reward, below the degenerate share, with 95% intervals; a grey bar is the gold
    maximum of the setting's own task.
    """
    found = {t: by_setting(protocol, t, records) for t in protocol.tasks}
    tasks = [task for task, settings in found.items() if settings]
    count = max(1, len(tasks))
    figure, axes = plt.subplots(
        2, count, figsize=(1.5 + 4.2 * count, 6.2), layout="constrained", squeeze=False
    )
    handles: dict[str, Any] = {}
    for column, task in zip(axes.T, tasks, strict=False):
        settings = {TUNED: as_tuned(protocol, task, records)} | found[task]
        for place, methods in enumerate(settings.values()):
            for name, rows in methods.items():
                shift = 0.18 * (list(OFFSETS).index(name) - 1.5)
                for axis, read in zip(column, (gold_of, degenerate_of), strict=True):
                    values = list(map(read, rows.values()))
                    handles[LABELS[name]] = _dot(axis, place + shift, values, name)
            first, *_ = (row for rows in methods.values() for row in rows.values())
            gold_max = load_task(first["config"]["task"]).gold_max
            column[0].hlines(gold_max, place - 0.4, place + 0.4, color="#999999")
        for axis in column:
            axis.set_xticks(range(len(settings)), [fill(s, 8) for s in settings])
            axis.set_xlim(-0.5, len(settings) - 0.5)
            axis.axvline(0.5, color="#bbbbbb", linewidth=1, linestyle=":")
            plain(axis)
        column[0].set_ylim(bottom=-0.04 * column[0].dataLim.y1)
        column[0].set_title(task, fontsize=11, loc="left")
        column[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        column[1].set_ylim(-0.04, 1.04)
    axes[0][0].set_ylabel("gold reward at the end")
    axes[1][0].set_ylabel("degenerate share of responses")
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3,
                      frameon=False, fontsize=9.5)  # fmt: skip
    figure.suptitle("where it should fail: the tuned methods in settings made for it", fontsize=13)
    return figure


def _dot(axis: Axes, x: float, values: list[float], name: str) -> Any:
    """A mean with its interval, in the colour of a constraint."""
    return axis.errorbar(
        x, *span(values), fmt=OFFSETS[name], color=COLOURS[name], capsize=3, markersize=7
    )
