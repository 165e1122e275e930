"""Training film: scrub through a run and watch one prompt's response and refinement change."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from rftkit.errors import UserError
from rftkit.figures import colour
from rftkit.paths import DATA
from rftkit.runs import RunFolder
from rftkit.widgets.parts import (
    Explorer,
    constraint_label,
    draw,
    dropdown,
    fit,
    offer,
    panels,
    player,
    row,
    slider,
    tidy,
)
from rftkit.widgets.samples import Row, latest, sample_edit_ratio, sample_html


def film_runs(root: Path) -> dict[str, RunFolder]:
    """The runs under `root` that hold samples, by their path from there.

    Raises UserError where there is none.
    """
    folders = sorted(path.parent for path in root.rglob("samples.jsonl"))
    runs = {f.relative_to(root).as_posix(): RunFolder(f) for f in folders}
    found = {name: run for name, run in runs.items() if run.samples() and run.metrics()}
    if not found:
        raise UserError(f"{root}: no recorded run with samples; name a folder of runs")
    return found


def film_figure(run: RunFolder, prompt: str, step: int) -> Figure:
    """Gold reward and edit ratio of one prompt's response, over the mean of all, against step."""
    rows = [r for r in run.samples() if r["prompt"] == prompt]
    own = colour(run.config().constraint)
    metrics = run.metrics()
    figure, (gold, edits) = panels(1, 2, 9, 2.6)
    for axis, key, title in (
        (gold, "gold_reward", "gold reward"),
        (edits, "edit_ratio", "edit ratio (this prompt: by words)"),
    ):
        mean = [(m["step"], m[key]) for m in metrics if m[key] is not None]
        axis.plot(*zip(*mean, strict=True), color="#999999", linewidth=1.5, label="mean of the run")
        value = {r["step"]: r[key] if key in r else sample_edit_ratio(r) for r in rows}
        shown = {s: v for s, v in value.items() if v is not None}
        axis.plot(list(shown), list(shown.values()), "o--", color=own, label="this prompt")
        if step in shown:
            axis.plot([step], [shown[step]], "o", color=own, markersize=13, fillstyle="none")
        axis.axvline(step, color="#777777", linewidth=1)
        axis.set_ylim(bottom=0)
        tidy(axis, title)
    gold.legend(frameon=False, fontsize=9)
    return figure


class TrainingFilm(Explorer):
    """Choose a run and a prompt; the slider, or play, goes through the evaluations."""

    def __init__(self, root: Path | str = DATA / "runs"):
        self.runs = film_runs(Path(root))
        self.run = dropdown(list(self.runs), "run")
        self.prompt = dropdown([], "prompt", "620px")
        self.step = slider([0], "step")
        self.play = player(self.step, 900)
        super().__init__([row(self.run, self.prompt), row(self.play, self.step)])
        self.run.observe(lambda _: self.attempt(self._open), "value")
        self.prompt.observe(self.refresh, "value")
        self.step.observe(self.refresh, "value")
        self.attempt(self._open)

    def _open(self) -> None:
        """Show another run, at the same prompt and step where it has them."""
        self._samples: list[Row] = self.runs[self.run.value].samples()
        prompts = list(dict.fromkeys(r["prompt"] for r in self._samples))
        steps = sorted({r["step"] for r in self._samples})
        with self.quiet():
            offer(self.prompt, prompts, prompts[0])
            offer(self.step, steps, steps[-1])
            fit(self.play, self.step)
        self._show()

    def html(self) -> str:
        run, prompt = self.runs[self.run.value], self.prompt.value
        label = constraint_label(run.config().constraint, run.metrics()[0]["coef"])
        frames = [r for r in self._samples if r["prompt"] == prompt]
        frame = latest(frames, self.step.value)[0]
        return sample_html(frame, f"{label} · step {frame['step']}") + draw(
            lambda: film_figure(run, prompt, frame["step"]),
            f"Gold reward and edit ratio of this prompt's response at step {frame['step']}.",
        )
