"""Constraint lab: recorded sweeps side by side, KL's β on one slider, λ on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rftkit.errors import UserError
from rftkit.paths import DATA
from rftkit.plots import COLOURS, LABELS, STYLES, series
from rftkit.runs import RunFolder
from rftkit.tasks import REGISTRY, task_of
from rftkit.widgets.parts import (
    Explorer,
    constraint_label,
    draw,
    dropdown,
    fit,
    legend_below,
    offer,
    panels,
    player,
    row,
    slider,
    tidy,
)
from rftkit.widgets.samples import latest, sample_html

MEASURES = (
    ("task_reward", "task reward (what training sees)"),
    ("gold_reward", "gold reward (never trained on)"),
    ("degenerate", "degenerate share of responses"),
    ("strength", "strength: share of the gradient"),
)


@dataclass(frozen=True)
class Sweep:
    """One constraint on one task; runs: by coefficient, ascending, one a seed."""

    name: str
    task: str
    constraint: str
    runs: dict[float, list[RunFolder]]

    @property
    def middle(self) -> float:
        """A coefficient in the middle of those recorded."""
        return list(self.runs)[len(self.runs) // 2]


def find_sweeps(root: Path | str) -> list[Sweep]:
    """The sweeps under `root`: each folder of runs, split by constraint. Empty runs are left out.

    A `root` that is a run itself is one sweep. Raises UserError where there is none.
    """
    found: dict[tuple[str, str, str], dict[float, list[RunFolder]]] = {}
    for path in sorted(Path(root).rglob("config.json")):
        run = RunFolder(path.parent)
        metrics = run.metrics()
        if metrics and run.samples():
            config, inside = run.config(), path.parent.relative_to(root)
            name = inside.parent.as_posix() if inside.parts else path.parent.resolve().name
            runs = found.setdefault((name, config.task, config.constraint), {})
            runs.setdefault(metrics[0]["coef"], []).append(run)
    if not found:
        raise UserError(f"{root}: no recorded sweep; make one with rftkit sweep")
    return [Sweep(*key, dict(sorted(runs.items()))) for key, runs in found.items()]


def lab_figure(chosen: Sequence[tuple[Sweep, float]], step: int) -> Figure:
    """Four panels: the chosen coefficient of each sweep, its other ones faint, a mark at `step`.

    Several seeds are their mean, and a band from lowest to highest.
    """
    figure, axes = panels(2, 2, 11, 5.8)
    for axis, (key, title) in zip(axes.flat, MEASURES, strict=True):
        for sweep, coef in chosen:
            for other, runs in sweep.runs.items():
                _line(axis, sweep.constraint, other, runs, key, other == coef)
        axis.axvline(step, color="#777777", linewidth=1)
        tidy(axis, title)
    task, gold, degenerate, strength = axes.flat
    sweep, coef = chosen[0]
    gold_max = task_of(sweep.runs[coef][0].config()).gold_max
    gold.axhline(gold_max, color="#999999", linewidth=1, linestyle=":")
    gold.set_ylim(0, 1.05 * gold_max)
    degenerate.set_ylim(-0.03, 1.03)
    strength.set_ylim(0, 1)
    legend_below(figure, task, 0.14)
    return figure


def _line(
    axis: Axes, constraint: str, coef: float, runs: Sequence[RunFolder], key: str, chosen: bool
) -> None:
    steps, values = series(runs, key)
    look: dict[str, Any] = {"color": COLOURS[constraint], "linestyle": STYLES.get(constraint, ":")}
    if not chosen:
        axis.plot(steps, values.mean(0), **look, linewidth=0.8, alpha=0.3)
        return
    axis.plot(steps, values.mean(0), **look, linewidth=2, label=constraint_label(constraint, coef))
    if len(runs) > 1:
        band = values.min(0), values.max(0)
        axis.fill_between(steps, *band, color=look["color"], alpha=0.18, linewidth=0)


class ConstraintLab(Explorer):
    """Two sweeps of one task with a slider each, and one for the step of the samples below."""

    def __init__(self, root: Path | str = DATA / "runs" / "tuning"):
        sweeps = sorted(find_sweeps(root), key=lambda s: [*REGISTRY, s.task].index(s.task))
        by_task: dict[str, list[Sweep]] = {}
        for sweep in sweeps:
            by_task.setdefault(sweep.task, []).append(sweep)
        self.task = dropdown(list(by_task.items()), "task")
        self.sides = [(dropdown([], "sweep"), slider([-1.0], "coefficient")) for _ in range(2)]
        self.prompt = dropdown([], "prompt", "620px")
        self.step = slider([-1], "step")
        self.play = player(self.step, 900)
        super().__init__(
            [
                self.task,
                *(row(*side) for side in self.sides),
                row(self.play, self.step, self.prompt),
            ]
        )
        self.task.observe(lambda _: self.attempt(self._open_task), "value")
        for choice, coef in self.sides:
            choice.observe(lambda _: self.attempt(self._open_sweeps), "value")
            coef.observe(self.refresh, "value")
        self.step.observe(self.refresh, "value")
        self.prompt.observe(self.refresh, "value")
        self.attempt(self._open_task)

    def chosen(self) -> list[tuple[Sweep, float]]:
        """Each side's sweep and coefficient; one only where both sides show the same."""
        pairs = [(choice.value, coef.value) for choice, coef in self.sides]
        return pairs[:1] if pairs[0] == pairs[1] else pairs

    def html(self) -> str:
        chosen, step = self.chosen(), self.step.value
        names = [constraint_label(sweep.constraint, coef) for sweep, coef in chosen]
        figure = draw(
            lambda: lab_figure(chosen, step),
            f"Rewards, degenerate share and strength of {' and '.join(names)}; step {step} marked.",
        )
        blocks = []
        for name, (sweep, coef) in zip(names, chosen, strict=True):
            samples = [s for s in sweep.runs[coef][0].samples() if s["prompt"] == self.prompt.value]
            for sample in latest(samples, step)[:1]:
                blocks.append(sample_html(sample, f"{name} · step {sample['step']}", prompt=False))
        return figure + "".join(blocks)

    def _open_task(self) -> None:
        """Offer the task's sweeps: KL on the first side, the dynamic constraint on the second."""
        sweeps = self.task.value
        with self.quiet():
            for (choice, _), constraint in zip(self.sides, ("kl", "dynamic"), strict=True):
                choice.options = [(f"{s.name} ({s.constraint})", s) for s in sweeps]
                choice.value = next((s for s in sweeps if s.constraint == constraint), sweeps[0])
        self._open_sweeps()

    def _open_sweeps(self) -> None:
        """Fit sliders, steps and prompts to the sweeps; keep what was chosen where it is there."""
        with self.quiet():
            for choice, coef in self.sides:
                sweep = choice.value
                symbol = "β" if sweep.constraint == "kl" else "λ"
                coef.description = f"{symbol} of {LABELS.get(sweep.constraint, sweep.constraint)}"
                offer(coef, [(f"{c:g}", c) for c in sweep.runs], sweep.middle)
            samples = [
                sample
                for choice, _ in self.sides
                for runs in choice.value.runs.values()
                for sample in runs[0].samples()
            ]
            steps = sorted({s["step"] for s in samples})
            offer(self.step, steps, steps[-1])
            fit(self.play, self.step)
            prompts = list(dict.fromkeys(s["prompt"] for s in samples))
            offer(self.prompt, prompts, prompts[0])
        self._show()
