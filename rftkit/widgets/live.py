"""Live trainer: start, pause and stop a run; its curves and its worst response while it trains.

The run trains in a thread of its own, one step at a time, so the page stays usable. Stopping keeps
the run folder with a checkpoint, as an interruption of `rftkit train` would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from rftkit.config import CONSTRAINTS, RunConfig
from rftkit.errors import UserError, reason
from rftkit.paths import DATA
from rftkit.plots import COLOURS, STYLES
from rftkit.runs import RunFolder
from rftkit.tasks import task_of
from rftkit.trainer import Trainer
from rftkit.widgets.parts import (
    Explorer,
    button,
    constraint_label,
    draw,
    dropdown,
    escape,
    panels,
    row,
    tidy,
)
from rftkit.widgets.samples import sample_html, worst

# Measures more often, and on fewer prompts, than a run for the record.
LIVE = RunConfig(steps=60, eval_every=5, eval_prompts=32, strength_every=1, save_every=10)
MEASURES = (
    ("task_reward", "task reward"),
    ("gold_reward", "gold reward (never trained on)"),
    ("degenerate", "degenerate share"),
    ("strength", "strength: share of the gradient"),
)


class Session:
    """One run in a thread of its own; rows: its metrics so far; error: why it failed, one line.

    `on_change` is called from either thread, after each step and each change of state.
    """

    def __init__(self, config: RunConfig, out: Path, on_change: Callable[[], None]):
        self.config, self.run = config, RunFolder(out)
        self.rows: list[dict[str, Any]] = []
        self.error = ""
        self._phase = "loading"  # written by the run's thread alone
        self._on_change = on_change
        self._go, self._stop = threading.Event(), threading.Event()
        self._go.set()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def over(self) -> bool:
        return self._phase in ("stopped", "finished", "failed")

    @property
    def state(self) -> str:
        """loading, training, pausing, paused, stopping, stopped, finished or failed."""
        if self.over:
            return self._phase
        if self._stop.is_set():
            return "stopping"
        if not self._go.is_set():
            return "paused" if self._phase == "paused" else "pausing"
        return "training" if self._phase == "paused" else self._phase

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """Hold after the step that is under way; `go_on` lifts it."""
        self._go.clear()
        self._on_change()

    def go_on(self) -> None:
        self._go.set()
        self._on_change()

    def stop(self) -> None:
        """End after the step that is under way, with a checkpoint."""
        self._stop.set()
        self._go.set()
        self._on_change()

    def wait(self, seconds: float) -> None:
        """Until the thread has ended, or `seconds` have passed."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            self._enter(self._train())
        except Exception as error:  # the thread has no other way to tell
            self.error = reason(error)
            self._enter("failed")

    def _train(self) -> str:
        """Train to the end or to `stop`; how it ended."""
        trainer = Trainer(self.config, self.run.path)
        self._enter("training")
        for metrics in trainer.steps():
            self.rows.append(metrics)
            if not self._go.is_set():
                self._enter("paused")
                self._go.wait()
            if self._stop.is_set():
                trainer.save()
                return "stopped"
            self._enter("training")
        return "finished"

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._on_change()


Curves = tuple[str, Sequence[Mapping[str, Any]]]  # a constraint, and the metrics of a run


def live_figure(runs: Sequence[Curves], gold_max: float, recorded: Sequence[Curves] = ()) -> Figure:
    """Rewards, degenerate share and strength of runs; recorded and earlier ones faint."""
    figure, axes = panels(2, 2, 11, 4.8)
    for axis, (key, title) in zip(axes.flat, MEASURES, strict=True):
        for constraint, rows in recorded:
            points = [(m["step"], m[key]) for m in rows if m[key] is not None]
            axis.plot(
                *zip(*points, strict=True),
                color=COLOURS[constraint],
                linestyle=STYLES[constraint],
                linewidth=1.2,
                alpha=0.4,
                label=f"recorded: {constraint_label(constraint, rows[0]['coef'])}",
            )
        for i, (constraint, rows) in enumerate(runs):
            last = i == len(runs) - 1
            points = [(m["step"], m[key]) for m in rows if m[key] is not None]
            axis.plot(
                [step for step, _ in points],
                [value for _, value in points],
                color=COLOURS[constraint],
                linestyle=STYLES.get(constraint, ":"),
                marker="o" if len(points) < 40 else None,
                markersize=3.5,
                linewidth=2 if last else 1,
                alpha=1 if last else 0.45,
                label=constraint_label(constraint, rows[0]["coef"]),
            )
        tidy(axis, title)
    task, gold, degenerate, strength = axes.flat
    gold.axhline(gold_max, color="#999999", linewidth=1, linestyle=":")
    gold.set_ylim(0, 1.05 * gold_max)
    degenerate.set_ylim(-0.03, 1.03)
    strength.set_ylim(0, 1)
    if runs or recorded:
        task.legend(frameon=False, fontsize=9)
    return figure


def recorded_runs(config: RunConfig) -> list[Curves]:
    """Recorded runs of the task by the same model, one a constraint, as far as this one goes."""
    folder = DATA / "runs" / config.task
    found: list[Curves] = []
    for constraint in ("none", "kl", "dynamic") if config.model == RunConfig.model else ():
        for path in sorted(folder.glob(f"{constraint}-seed*"))[:1]:
            rows = [m for m in RunFolder(path).metrics() if m["step"] <= config.steps]
            found.append((constraint, rows))
    return found


class LiveTrainer(Explorer):
    """Each start is a new run under `out`; earlier ones of this widget stay as faint curves.

    So are recorded runs of the same task, to compare with.

    To go on with a stopped run: `Trainer(RunFolder(path).config(), path, resume=True).train()`.
    """

    def __init__(self, config: RunConfig = LIVE, out: Path | str = "out/live"):
        self.config, self.out = config, Path(out)
        self.gold_max = task_of(config).gold_max
        self.sessions: list[Session] = []
        self._drawn, self._lock = 0.0, threading.RLock()
        self.constraint = dropdown(list(CONSTRAINTS), "constraint")
        self.constraint.value = config.constraint
        self.coef = widgets.Text(
            description="β or λ",
            placeholder="the tuned one",
            value="" if config.coef is None else f"{config.coef:g}",
            layout={"width": "210px"},
        )
        self.steps = widgets.IntSlider(config.steps, 1, max(300, config.steps), description="steps")
        self.start_button = button("start", "begin a new run", self.start, "play")
        self.pause_button = button("pause", "hold after this step", self.pause, "pause")
        self.stop_button = button("stop", "end, and keep the run folder", self.stop, "stop")
        super().__init__(
            [
                row(self.constraint, self.coef, self.steps),
                row(self.start_button, self.pause_button, self.stop_button),
            ]
        )
        self._changed()

    def start(self) -> None:
        """Begin a new run in a folder of its own."""
        self.attempt(self._start)

    def pause(self) -> None:
        """Hold the run, or go on with it."""
        if self.running:
            session = self.sessions[-1]
            (session.pause if session.state == "training" else session.go_on)()

    def stop(self) -> None:
        """End the run after the step that is under way."""
        if self.running:
            self.sessions[-1].stop()

    @property
    def running(self) -> bool:
        return bool(self.sessions) and not self.sessions[-1].over

    def html(self) -> str:
        runs = [(s.config.constraint, list(s.rows)) for s in self.sessions if s.rows]
        steps = self.sessions[-1].config.steps if self.sessions else self.steps.value
        recorded = recorded_runs(replace(self.config, steps=steps))
        figure = draw(
            lambda: live_figure(runs, self.gold_max, recorded),
            f"Rewards, degenerate share and strength of {len(runs)} runs so far, beside "
            f"{len(recorded)} recorded ones.",
        )
        return f"<div>{self._status()}</div>{figure}{self._worst()}"

    def _start(self) -> None:
        if self.running:
            return
        constraint = self.constraint.value
        config = replace(
            self.config,
            constraint=constraint,
            coef=_number(self.coef.value),
            steps=self.steps.value,
        )
        names = (f"{constraint}-{n}" for n in count(1))
        folder = next(path for name in names if not (path := self.out / name).exists())
        self.sessions.append(Session(config, folder, self._changed))
        self.sessions[-1].start()
        self._changed()

    def _changed(self) -> None:
        """Show where the run stands; draw again at most once a second while it trains."""
        with self._lock:  # the page and the run's thread both come here; the later one is right
            state = self.sessions[-1].state if self.sessions else "ready"
            for control in (self.constraint, self.coef, self.steps, self.start_button):
                control.disabled = self.running
            self.stop_button.disabled = not self.running or state == "stopping"
            self.pause_button.disabled = state not in ("training", "pausing", "paused")
            self.pause_button.description = "go on" if state in ("pausing", "paused") else "pause"
            if state != "training" or time.monotonic() > self._drawn + 1:
                self.refresh()
                self._drawn = time.monotonic()

    def _status(self) -> str:
        if not self.sessions:
            return "ready"
        session = self.sessions[-1]
        at = f"step {session.rows[-1]['step']} of {session.config.steps}" if session.rows else ""
        why = escape(session.error)
        kept = f"kept in <code>{escape(session.run.path.as_posix())}</code>" if session.over else ""
        return " · ".join(part for part in (f"<b>{session.state}</b>", why, at, kept) if part)

    def _worst(self) -> str:
        """The worst response of the last evaluation."""
        samples = self.sessions[-1].run.samples() if self.sessions else []
        rows = [s for s in samples if s["step"] == samples[-1]["step"]]
        return sample_html(worst(rows), f"worst response at step {rows[0]['step']}") if rows else ""


def _number(text: str) -> float | None:
    """None for an empty text: the tuned coefficient."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise UserError(f"β or λ: {text!r} is no number; write one, or nothing") from None
