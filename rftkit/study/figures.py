"""Figures of the study: frontiers, and what makes the dynamic constraint work.

A colour is a constraint as everywhere in the project; forms of one constraint differ by marker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rftkit.figures import label_ends
from rftkit.metrics import bootstrap_ci, mean
from rftkit.plots import COLOURS, LABELS, STYLES
from rftkit.study.analysis import (
    DEGENERATE,
    DEGENERATE_BAR,
    GOLD,
    TUNED,
    as_tuned,
    by_dose,
    by_refiner,
    by_setting,
    results,
)
from rftkit.study.methods import DOSES, Method
from rftkit.study.plan import Protocol, Record, Records
from rftkit.tasks import load_task

MARKERS = "o^sDvP"
OFFSETS = {"none": "s", "kl": "^", "dynamic": "o"}  # from left to right, with their markers
Read = Callable[[Record], float]


def frontiers(protocol: Protocol, task: str, records: Records) -> Figure:
    """Gold reward against √KL, degenerate share and generated tokens.

    Large: means of the result seeds with 95% intervals. Small: every point that tuning tried.
    """
    gold_max = load_task(task).gold_max
    figure, axes = plt.subplots(1, 3, figsize=(14, 5.6), sharey=True, layout="constrained")
    by_kl, by_degenerate, by_tokens = axes
    handles: dict[str, Any] = {}
    for method in protocol.methods:
        look = _look(protocol, method)
        rows = list(results(task, method.name, records).values())
        tried = _tuning(task, method, records)
        for axis, read in ((by_kl, _root_kl), (by_degenerate, _degenerate)):
            axis.scatter([read(r) for r in tried], [_gold(r) for r in tried], s=16, alpha=0.3,
                         linewidths=0, color=look["color"], marker=look["marker"])  # fmt: skip
            if rows:
                handles[method.label] = _cross(axis, rows, read, look)
        if rows:
            _path(by_tokens, rows, look)
    for axis, title in (
        (by_kl, "√KL from the reference (nats a response)"),
        (by_degenerate, "degenerate share of responses"),
        (by_tokens, "tokens generated in training, refined ones included"),
    ):
        axis.set_xlabel(title)
        _plain(axis)
    for axis in axes:
        axis.axhline(gold_max, color="#999999", linewidth=1, zorder=0)
    by_kl.annotate("gold maximum", (1, gold_max), (0, 3), xycoords=("axes fraction", "data"),
                   textcoords="offset points", ha="right", fontsize=8, color="#666666")  # fmt: skip
    by_kl.set_ylabel("gold reward at the end")
    by_kl.set_xscale("symlog", linthresh=1.0)
    by_kl.set_xlim(left=-0.05)
    by_kl.set_xticks(ticks := [0, 1, 2, 5, 10, 20], [str(tick) for tick in ticks], minor=False)
    by_kl.minorticks_off()
    by_degenerate.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    by_degenerate.set_xlim(-0.04, 1.04)
    by_tokens.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    by_tokens.set_title("over training, mean of the seeds", fontsize=10, loc="left")
    by_kl.set_title("large: result; small: all tuning tried", fontsize=10, loc="left")
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4,
                      frameon=False, fontsize=9.5)  # fmt: skip
    figure.suptitle(f"{task}: does the constraint move the frontier?", fontsize=13)
    return figure


def why(task: str, records: Records) -> Figure:
    """When degeneration starts, and what the dynamic constraint does then."""
    figure, axes = plt.subplots(1, 5, figsize=(18, 3.7), layout="constrained")
    rows = {name: results(task, name, records) for name in ("none", "dynamic")}
    panels: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("degenerate", "degenerate share of responses", ("none", "dynamic")),
        ("edit_ratio", "edit ratio: what the refiner changes", ("dynamic",)),
        ("strength", "strength: share of the gradient", ("dynamic",)),
        ("pull", "pull: size of the constraint's gradient", ("dynamic",)),
        ("gold_reward", "gold reward", ("none", "dynamic")),
    )
    for axis, (key, title, names) in zip(axes, panels, strict=True):
        ends = {name: _band(axis, list(rows[name].values()), key, name) for name in names}
        axis.set_title(title, fontsize=10.5, loc="left")
        axis.set_xlabel("step")
        if key not in ("gold_reward", "pull"):
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axis.set_ylim(bottom=min(0.0, axis.dataLim.y0) if axis.lines else 0)
        _plain(axis)
        if len(names) > 1:
            found = {LABELS[n]: (end[1], n) for n, end in ends.items() if end}
            label_ends(axis, max(end[0] for end in ends.values() if end), found)
    figure.suptitle(f"{task}: what happens over training", fontsize=13)
    return figure


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
            _plain(axis)
        axes[0].set_title(task, fontsize=11, loc="left")
        axes[0].set_ylabel("gold reward at the end")
    told = f"hollow: over {DEGENERATE_BAR:.0%} degenerate; grey: gold maximum"
    figure.suptitle(f"how much of the dynamic constraint is needed ({told})", fontsize=13)
    return figure


def _doses(axis: Axes, points: Mapping[float, Mapping[int, Record]], own: float) -> None:
    """Gold reward by dose; hollow where responses degenerate."""
    doses = sorted(points)
    golds = {dose: [_gold(r) for r in points[dose].values()] for dose in doses}
    places = range(len(doses))  # evenly spaced: doses are steps of a scale, and one may be 0
    means = [mean(golds[dose]) for dose in doses]
    axis.plot(places, means, color=COLOURS["dynamic"], linewidth=1.5, zorder=1)
    for place, dose in zip(places, doses, strict=True):
        degenerate = mean([_degenerate(r) for r in points[dose].values()]) > DEGENERATE_BAR
        axis.errorbar(
            place, *_span(golds[dose]), fmt="o", color=COLOURS["dynamic"],
            markerfacecolor="white" if degenerate else COLOURS["dynamic"], capsize=3,
        )  # fmt: skip
    axis.set_xticks(list(places), [f"{d:g}" + ("\ntuned" if d == own else "") for d in doses])
    axis.margins(x=0.08)


def refiners(protocol: Protocol, records: Records, measured: Sequence[Record]) -> Figure:
    """Gold reward of each policy over what its refiner does to good and to malformed drafts."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    looks: dict[str, dict[str, Any]] = {
        task: {"color": COLOURS["dynamic"], "marker": mark, "markersize": 7, "alpha": 0.75}
        for task, mark in zip(protocol.tasks, "os^", strict=False)
    }
    for row, run in by_refiner(protocol, records, measured):
        gold = _gold(run) / load_task(row["task"]).gold_max
        look = looks[row["task"]] | {"clip_on": False}
        if _degenerate(run) > DEGENERATE_BAR:
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
        _plain(axis)
    for task, look in looks.items():
        kept.plot([], [], linestyle="none", label=task, **look)
    kept.legend(frameon=False, loc="upper left")
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
                shift = 0.2 * (list(OFFSETS).index(name) - 1)
                for axis, read in zip(column, (_gold, _degenerate), strict=True):
                    values = list(map(read, rows.values()))
                    handles[LABELS[name]] = _dot(axis, place + shift, values, name)
            first, *_ = (row for rows in methods.values() for row in rows.values())
            gold_max = load_task(first["config"]["task"]).gold_max
            column[0].hlines(gold_max, place - 0.4, place + 0.4, color="#999999")
        for axis in column:
            axis.set_xticks(range(len(settings)), [fill(s, 8) for s in settings])
            axis.set_xlim(-0.5, len(settings) - 0.5)
            axis.axvline(0.5, color="#bbbbbb", linewidth=1, linestyle=":")
            _plain(axis)
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
        x, *_span(values), fmt=OFFSETS[name], color=COLOURS[name], capsize=3, markersize=7
    )


def _look(protocol: Protocol, method: Method) -> dict[str, str]:
    """Colour by constraint, marker by the place among the methods of that colour."""
    name = str(method.settings["constraint"])
    same = [m.name for m in protocol.methods if m.settings["constraint"] == name]
    return {"color": COLOURS[name], "marker": MARKERS[same.index(method.name)]}


def _tuning(task: str, method: Method, records: Records) -> list[Record]:
    stages = (f"{task}/{method.name}/first", f"{task}/{method.name}/second")
    return [
        r for key, r in records.items() if key.startswith(stages) and not (r["failed"] or _lost(r))
    ]


def _lost(record: Record) -> bool:
    """Whether KL, an infinity at the end, could not be measured."""
    return record["final"]["kl"] is None


def _cross(axis: Axes, rows: Sequence[Record], read: Read, look: Mapping[str, str]) -> Any:
    """A mean with intervals both ways."""
    x, x_span = _span([read(r) for r in rows])
    y, y_span = _span([_gold(r) for r in rows])
    return axis.errorbar(
        x, y, yerr=y_span, xerr=x_span, fmt=look["marker"], color=look["color"],
        markersize=9, markeredgecolor="white", markeredgewidth=0.8, elinewidth=1.4, zorder=3,
    )  # fmt: skip


def _span(values: Sequence[float]) -> tuple[float, list[list[float]]]:
    """Mean, and its 95% interval as matplotlib's error bars take it: below and above."""
    middle, (low, high) = mean(values), bootstrap_ci(values)
    return middle, [[middle - low], [high - middle]]


def _path(axis: Axes, rows: Sequence[Record], look: Mapping[str, str]) -> None:
    """Mean gold reward over mean tokens generated, at the evaluations."""
    curves = [r["curve"] for r in rows]
    count = min(len(c["step"]) for c in curves)
    tokens = np.mean([c["generated"][:count] for c in curves], axis=0)
    gold = np.mean([c["gold_reward"][:count] for c in curves], axis=0)
    axis.plot(tokens, gold, color=look["color"], linewidth=1.4, alpha=0.85)
    axis.plot(tokens[-1], gold[-1], look["marker"], color=look["color"], markersize=8,
              markeredgecolor="white", zorder=3)  # fmt: skip


def _band(axis: Axes, rows: Sequence[Record], key: str, name: str) -> tuple[float, float] | None:
    """Mean of the seeds against step, the band from lowest to highest; the mean's last point."""
    tables = [
        {s: v for s, v in zip(r["curve"]["step"], r["curve"][key], strict=True) if v is not None}
        for r in rows
    ]
    steps = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    if not steps:
        return None
    values = np.array([[t[s] for s in steps] for t in tables])
    axis.plot(steps, values.mean(0), STYLES[name], color=COLOURS[name], linewidth=2)
    axis.fill_between(steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.18, lw=0)
    return float(steps[-1]), float(values.mean(0)[-1])


def _gold(record: Record) -> float:
    return float(GOLD.read(record) or 0.0)


def _degenerate(record: Record) -> float:
    return float(DEGENERATE.read(record) or 0.0)


def _root_kl(record: Record) -> float:
    """√KL; an estimate may come out below 0."""
    return float(max(0.0, record["final"]["kl"] or 0.0) ** 0.5)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
