"""Figures: one colour a constraint in the whole project, labels at the lines, seeds as bands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image  # a part of matplotlib's own installation

from rftkit.files import replace_file
from rftkit.runs import RunFolder

# Okabe and Ito's palette: distinguishable with any colour vision. Any other name is a constraint
# of one's own.
COLOURS: defaultdict[str, str] = defaultdict(lambda: "#882255")
COLOURS |= {
    "none": "#D55E00",
    "kl": "#0072B2",
    "dynamic": "#009E73",
    "identity": "#7F7F7F",
    "fresh": "#CC79A7",
    "random-edit": "#E69F00",
}
STYLES = {"none": "--", "kl": "-.", "dynamic": "-"}
LABELS = {"none": "no constraint", "kl": "KL", "identity": "identity", "dynamic": "dynamic"}
LABEL_GAP = 0.06  # least distance of two names at the lines' ends, as a share of a panel's height

PANELS = (
    ("gold_reward", "gold reward (never trained on)"),
    ("task_reward", "task reward (what training sees)"),
    ("degenerate", "degenerate share of responses"),
    ("kl", "KL from the reference (nats a response)"),
    ("edit_ratio", "edit ratio: what the refiner changes"),
    ("strength", "strength: constraint's share of the gradient"),
)


def series(runs: Sequence[RunFolder], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and values [seeds, n] of a metric, at the steps where every seed has it."""
    tables = [{m["step"]: m[key] for m in run.metrics() if m.get(key) is not None} for run in runs]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    return np.array(steps), np.array([[t[s] for s in steps] for t in tables]).reshape(len(runs), -1)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Centred running mean of values [seeds, steps]; shorter at the ends."""
    kernel = np.ones(min(width, values.shape[1]))
    weight = np.convolve(np.ones(values.shape[1]), kernel, "same")
    return np.array([np.convolve(row, kernel, "same") / weight for row in values])


def curves(runs: Mapping[str, Sequence[RunFolder]], task: str, gold_max: float) -> Figure:
    """Six panels against step: rewards, degeneracy, KL, edit ratio, strength."""
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 7.2), layout="constrained")
    ends = [
        _panel(axis, runs, key, title) for axis, (key, title) in zip(axes.flat, PANELS, strict=True)
    ]
    gold, task_axis, degenerate, kl, edits, strength = axes.flat
    gold.axhline(gold_max, color="#999999", linewidth=1, zorder=0)
    gold.annotate(
        "gold maximum",
        (0, gold_max),
        (2, 2),  # above the line, where no curve passes
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    # A reward of one's own may be negative or exceed its maximum; nothing is to fall off the axes.
    gold.set_ylim(min(0.0, gold.dataLim.y0), max(gold_max, gold.dataLim.y1) * 1.08)
    for axis, decimals in ((degenerate, 0), (edits, 1), (strength, 0)):
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals))
    for axis in (degenerate, strength):
        axis.set_ylim(-0.03, 1.06)  # a curve that ends at 100% has its name below the title
    kl.set_yscale("symlog", linthresh=1.0)
    for axis in (task_axis, edits, kl):
        axis.set_ylim(bottom=min(0.0, axis.dataLim.y0))
    for axis, named in zip(axes.flat, ends, strict=True):
        _label_ends(axis, named)
    coefs = {name: folders[0].metrics()[0]["coef"] for name, folders in runs.items()}
    parts = [f"{_label(name)}{_coef(name, coefs[name])}" for name in runs]
    seeds = len(next(iter(runs.values())))
    note = f"{seeds} seeds, band = lowest to highest" if seeds > 1 else "one seed"
    figure.suptitle(f"{task}: {', '.join(parts)} · {note}", fontsize=13)
    return figure


def save(path: Path, figure: Figure) -> None:
    """Write a figure as a picture, whole or not at all, and close it.

    A PNG keeps 256 colours, which is all that a plot needs, and a third of its size.
    """
    kind = path.suffix[1:]

    def write(new: Path) -> None:
        figure.savefig(new, dpi=110, format=kind)
        if kind == "png":
            with Image.open(new) as picture:
                small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(new, "PNG", optimize=True)

    replace_file(path, write)
    plt.close(figure)


def refining_cost(runs: Sequence[RunFolder]) -> Figure:
    """What refining cost in training: forward passes a refinement, against edits and over steps.

    Plain greedy decoding takes as many passes as the refined response has tokens.
    """
    edits, rounds, plain = (series(runs, k) for k in ("edit_ratio", "rounds", "refined_length"))
    figure, (by_edits, by_step) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    colour = COLOURS["dynamic"]
    dots = by_edits.scatter(
        edits[1], rounds[1], c=np.tile(rounds[0], len(runs)), cmap="viridis", s=14
    )
    figure.colorbar(dots, ax=by_edits, label="step")
    by_edits.set_xlabel("edit ratio of the step's responses")
    by_edits.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    by_step.set_xlabel("step")
    for (steps, values), style, label in (
        (plain, ":", "plain greedy decoding"),
        (rounds, "-", "verified against the draft"),
    ):
        shown = smooth(values).mean(0)
        by_step.plot(steps, shown, style, color=colour, linewidth=2)
        by_step.annotate(label, (steps[-1], shown[-1]), (0, 7), ha="right", color=colour,
                         textcoords="offset points", fontweight="bold", fontsize=9)  # fmt: skip
    by_step.set_ylim(bottom=0, top=1.15 * float(plain[1].max()))
    for axis in (by_edits, by_step):
        axis.set_title("forward passes a refinement", fontsize=10.5, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure


def _panel(
    axis: Axes, runs: Mapping[str, Sequence[RunFolder]], key: str, title: str
) -> list[tuple[float, float, str]]:
    """Draw a metric; returns value, step and name where each line ends."""
    ends: list[tuple[float, float, str]] = []
    for name, folders in runs.items():
        steps, values = series(folders, key)
        if not len(steps) or (key == "strength" and name == "none"):
            continue
        shown = smooth(values) if key in ("task_reward", "edit_ratio") else values
        colour = COLOURS[name]
        axis.plot(steps, shown.mean(0), STYLES.get(name, ":"), color=colour, linewidth=2)
        if len(folders) > 1:
            axis.fill_between(steps, shown.min(0), shown.max(0), color=colour, alpha=0.18, lw=0)
        ends.append((float(shown.mean(0)[-1]), float(steps[-1]), name))
    axis.margins(x=0.02)
    axis.set_title(title, fontsize=10.5, loc="left")
    axis.set_xlabel("step")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return ends


def _label_ends(axis: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """Name each line at its end, apart from each other; for axes whose scale and limits are set."""
    axis.get_ylim()  # matplotlib settles limits only when they are asked for
    to_axes = axis.transData - axis.transAxes
    last = -np.inf
    for value, step, name in sorted(ends):
        last = max(float(to_axes.transform((step, value))[1]), last + LABEL_GAP)
        axis.annotate(
            _label(name),
            (step, last),
            (5, 0),
            xycoords=axis.get_xaxis_transform(),  # x in steps, y as a share of the axes' height
            textcoords="offset points",
            color=COLOURS[name],
            fontsize=9,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _coef(name: str, coef: Any) -> str:
    if name == "none":
        return ""
    return f" ({'β' if name == 'kl' else 'λ'} = {coef:g})"
