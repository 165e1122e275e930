"""Figures of the study's result: all methods at a glance, frontiers, what happens over training.

A colour is a constraint as everywhere in the project; forms of one constraint differ by marker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rftkit.figures import label_ends
from rftkit.plots import COLOURS, LABELS, STYLES
from rftkit.study.analysis import grouped, results, tasks_with_results
from rftkit.study.marks import degenerate_of, gold_of, plain, span
from rftkit.study.methods import Method
from rftkit.study.plan import Protocol, Record, Records
from rftkit.tasks import load_task

MARKERS = "o^sDvP"
RIM: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.8}
Read = Callable[[Record], float]


def overview(protocol: Protocol, records: Records) -> Figure:
    """Gold reward and degenerate share at the end, a line a method and a column a task.

    Large: means with 95% intervals. Small: single seeds.
    """
    tasks = tasks_with_results(protocol, records)
    methods = [m for m in grouped(protocol) if any(results(t, m.name, records) for t in tasks)]
    count, height = max(1, len(tasks)), 0.9 + 0.24 * len(methods)
    figure, axes = plt.subplots(
        2, count, figsize=(2.6 + 3.8 * count, 0.6 + 2 * height), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (by_gold, by_degenerate), task in zip(axes.T, tasks, strict=False):
        gold_max = load_task(task).gold_max
        for place, method in enumerate(methods):
            rows = list(results(task, method.name, records).values())
            look = _look(protocol, method)
            for axis, read in ((by_gold, gold_of), (by_degenerate, degenerate_of)):
                if rows:
                    _line(axis, place, [read(r) for r in rows], look)
        by_gold.axvline(gold_max, color="#999999", linewidth=1, zorder=0)
        by_gold.set_xlim(-0.04 * gold_max, 1.04 * gold_max)
        by_gold.set_title(task, fontsize=11, loc="left")
        by_gold.set_xlabel("gold reward at the end; line: its maximum")
        by_degenerate.set_xlim(-0.04, 1.04)
        by_degenerate.set_xlabel("degenerate share of responses")
        by_degenerate.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axis in axes.flat:
        axis.set_yticks(range(len(methods)), [m.label for m in methods])
        axis.set_ylim(len(methods) - 0.4, -0.6)
        plain(axis)
    seeds = len(protocol.result_seeds)
    figure.suptitle(f"every method as tuned, on {seeds} fresh seeds", fontsize=13)
    return figure


def _line(axis: Axes, y: int, values: list[float], look: Mapping[str, str]) -> None:
    """A method's mean with its interval, and its seeds."""
    colour = look["color"]
    axis.scatter(values, [y] * len(values), s=14, color=colour, alpha=0.4, linewidths=0)
    middle, sides = span(values)
    axis.errorbar(middle, y, xerr=sides, fmt=look["marker"], color=colour, markersize=8,
                  elinewidth=1.6, zorder=3, **RIM)  # fmt: skip


def frontiers(protocol: Protocol, task: str, records: Records) -> Figure:
    """Gold reward against √KL, degenerate share and generated tokens.

    Large: means of the result seeds with 95% intervals. Small: every point that tuning tried.
    """
    gold_max = load_task(task).gold_max
    figure, axes = plt.subplots(1, 3, figsize=(14, 5.6), sharey=True, layout="constrained")
    by_kl, by_degenerate, by_tokens = axes
    handles: dict[str, Any] = {}
    for method in grouped(protocol):
        look = _look(protocol, method)
        rows = list(results(task, method.name, records).values())
        tried = _tuning(task, method, records)
        for axis, read in ((by_kl, _root_kl), (by_degenerate, degenerate_of)):
            axis.scatter([read(r) for r in tried], [gold_of(r) for r in tried], s=16, alpha=0.3,
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
        plain(axis)
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
        plain(axis)
        if len(names) > 1:
            found = {LABELS[n]: (end[1], n) for n, end in ends.items() if end}
            label_ends(axis, max(end[0] for end in ends.values() if end), found)
    figure.suptitle(f"{task}: what happens over training", fontsize=13)
    return figure


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
    x, x_span = span([read(r) for r in rows])
    y, y_span = span([gold_of(r) for r in rows])
    return axis.errorbar(
        x, y, yerr=y_span, xerr=x_span, fmt=look["marker"], color=look["color"],
        markersize=9, elinewidth=1.4, zorder=3, **RIM,
    )  # fmt: skip


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


def _root_kl(record: Record) -> float:
    """√KL; an estimate may come out below 0."""
    return float(max(0.0, record["final"]["kl"] or 0.0) ** 0.5)
