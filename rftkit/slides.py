"""Figures for slides that tell the story in order: `make figures`, into out/figures.

From recorded runs and from exact computations on the toy policy; captions take their numbers from
the same place. Each is a PNG and an SVG; README.md beside them lists captions, and texts for those
who cannot see the figures.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rftkit.diff import visible
from rftkit.errors import UserError
from rftkit.figures import bars, canvas, colour, label_ends, lines
from rftkit.objectives import group_advantages
from rftkit.paths import DATA
from rftkit.plots import LABELS, STYLES, series
from rftkit.runs import RunFolder, write_text
from rftkit.toy import FOUR_ROLLOUTS, cafe, kl, train
from rftkit.words import word_diff

SIZE: dict[str, Any] = {
    "width": 7.2,
    "height": 4.05,
}  # inches; 16:9, so small that letters are large
DPI = 220
COEFS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STEPS = 150
LINE = 62  # characters


@dataclass(frozen=True)
class Slide:
    """A figure, its file name, what to say about it, and what it shows, in words."""

    name: str
    figure: Figure
    caption: str
    alt: str


def story(runs: Path = DATA / "runs") -> Iterator[Slide]:
    """All slides in the order of the lessons, each drawn when its turn comes.

    `runs` has a folder with summary.json for each task. Raises UserError where there is none.
    """
    folders = sorted(path.parent for path in runs.glob("*/summary.json"))
    if not folders:
        raise UserError(f"{runs}: no recorded comparison; make one with rftkit compare")
    makers: list[Callable[[], Slide | None]] = [
        advantages,
        *(partial(collapse, folder) for folder in folders),
        leash,
        *(partial(refinement, folder) for folder in folders),
        tightening,
        coefficients,
        *(partial(make, folder) for folder in folders for make in (result, relaxing)),
    ]
    drawn = filter(None, (make() for make in makers))
    return (replace(slide, name=f"{i:02}-{slide.name}") for i, slide in enumerate(drawn, 1))


def _plain(text: str) -> str:
    """Text that a policy may have written, as one line that is no Markdown and no HTML."""
    return re.sub(r"([\\`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def write(slides: Iterable[Slide], out: Path) -> None:
    """PNG and SVG of each slide, and README.md with captions and texts; figures are closed."""
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Figures for slides\n"]
    for slide in slides:
        slide.figure.savefig(out / f"{slide.name}.png", dpi=DPI)
        with plt.rc_context({"svg.hashsalt": slide.name}):  # the same file each time
            slide.figure.savefig(out / f"{slide.name}.svg", metadata={"Date": None})
        plt.close(slide.figure)
        alt = _plain(slide.alt)
        parts.append(f"## {slide.name}\n\n![{alt}]({slide.name}.png)\n\n{slide.caption}\n")
    write_text(out / "README.md", "\n".join(parts))


# Exact, on the toy policy


def advantages() -> Slide:
    """Four rollouts, their rewards and GRPO advantages."""
    four = FOUR_ROLLOUTS
    values = group_advantages(four.rewards, "grpo")[0]
    figure, axis = canvas(**SIZE)
    groups = {"reward": (four.rewards[0], "reference"), "advantage": (values, "optimum")}
    bars(axis, list(four.responses), groups, "reward, advantage")
    axis.axhline(0, color="#777777", linewidth=1)
    named = ", ".join(f"{y} {a:+.0f}" for y, a in zip(four.responses, values.tolist(), strict=True))
    return Slide(
        "advantages",
        figure,
        "A reward becomes a lesson only by comparison: an advantage is a reward against its group.",
        f"Bars for four rollouts; their advantages are {named}.",
    )


def leash() -> Slide:
    """Gold reward against KL on the toy, for each β, and the dynamic constraint."""
    scene = cafe()
    start = scene.reference.probs().detach()

    def point(constraint: Any, coef: float) -> tuple[float, float]:
        probs = train(scene, constraint, coef, STEPS).probs[-1]
        return kl(probs, start).item(), (probs @ scene.gold_rewards).item()

    points = {beta: point("kl", beta) for beta in (*COEFS[1:-1], 0.5)}
    points = dict(sorted(points.items(), reverse=True))
    dynamic = point("dynamic", 3.0)
    figure, axis = canvas(**SIZE)
    axis.plot(*zip(*points.values(), strict=True), "o-.", color=colour("kl"))
    for beta, place in points.items():
        axis.annotate(
            f"β = {beta:g}",
            place,
            (8, 7 if beta < 3 else -16),
            textcoords="offset points",
            color=colour("kl"),
        )
    axis.plot(*dynamic, "o", color=colour("dynamic"))
    axis.annotate("dynamic", dynamic, (8, -4), textcoords="offset points", color=colour("dynamic"))
    axis.set(xlabel="KL from the reference (nats a response)", ylabel="gold reward", ylim=(0, 1.65))
    best = max(gold for _, gold in points.values())
    return Slide(
        "leash",
        figure,
        f"KL asks how far, not where to: its best β reaches {best:.2f} of 1.5, the dynamic "
        f"constraint {dynamic[1]:.2f} at {dynamic[0]:.1f} nats (toy policy, exact).",
        f"Gold reward against KL. The KL runs peak at {best:.2f} and fall; the dynamic run stands "
        f"above them at {dynamic[1]:.2f}.",
    )


def tightening() -> Slide:
    """Share not well-formed and pull, with a policy that is spoiled half-way."""
    scene = cafe()
    flawed = scene.refiner.diagonal() == 0
    before = train(scene, "dynamic", 1.0, STEPS)
    spoiled = before.probs[-1] * 0.5
    spoiled[flawed] += 0.5 / flawed.sum()
    again = scene._replace(reference=scene.reference.with_probs(spoiled))
    after = train(again, "dynamic", 1.0, STEPS)
    pull = torch.cat([before.pull, after.pull])
    share = torch.cat([before.probs[:-1], after.probs[:-1]])[:, flawed].sum(1)
    figure, axes = canvas(columns=2, **SIZE)
    x = range(len(pull))
    lines(axes[0], x, {"": (share, "dynamic")}, "step", "share not well-formed")
    lines(axes[1], x, {"": (pull, "dynamic")}, "step", "pull (gradient norm)")
    for axis in axes:
        axis.axvline(STEPS, color="#777777", linewidth=1)
    return Slide(
        "tightening",
        figure,
        "One λ throughout: the constraint relaxes as the policy gets better, and is there again at "
        f"once when the policy is spoiled at step {STEPS} (toy policy, exact).",
        f"Two curves against step. Both the flawed share and the pull fall, leap up at step {STEPS}"
        " and fall again.",
    )


def coefficients() -> Slide:
    """Gold reward at the end against the coefficient, for both constraints."""
    scene = cafe()
    names: tuple[Any, ...] = ("kl", "dynamic")
    gold = {
        n: [(train(scene, n, c, STEPS).probs[-1] @ scene.gold_rewards) for c in COEFS]
        for n in names
    }
    figure, axis = canvas(**SIZE)
    lines(axis, COEFS, {LABELS[n]: (torch.stack(gold[n]), n) for n in names},
          "coefficient (β or λ)", "gold reward at the end")  # fmt: skip
    axis.set_xscale("log")
    axis.set_ylim(0, 1.65)
    tops = {n: float(max(gold[n])) for n in names}
    return Slide(
        "coefficients",
        figure,
        f"No β is good (best {tops['kl']:.2f} of 1.5); many λ are (best {tops['dynamic']:.2f}; toy "
        "policy, exact). With sampled batches, a λ far too high gets stuck: lesson 10.",
        "Gold reward against the coefficient on a log axis: dynamic rises to a plateau near the "
        "maximum, KL has a low peak.",
    )


# From recorded runs


def collapse(folder: Path) -> Slide:
    """Task and gold reward of the runs without a constraint."""
    task, top, runs = _recorded(folder)
    figure, axis = canvas(**SIZE)
    ends = {}
    for key, label, name in (
        ("task_reward", "task reward", "none"),
        ("gold_reward", "gold reward", "optimum"),
    ):
        at, values = series(runs["none"], key)
        axis.plot(at, values.mean(0), STYLES.get(name, "-"), color=colour(name), linewidth=2)
        ends[label] = (float(values.mean(0)[-1]), name)
    axis.set(xlabel="step", ylabel="reward")
    axis.set_ylim(bottom=min(0.0, axis.dataLim.y0))
    label_ends(axis, float(at[-1]), ends)
    reached = {label: value for label, (value, _) in ends.items()}
    return Slide(
        f"collapse-{task}",
        figure,
        f"{task.capitalize()}, no constraint: the task reward ends at "
        f"{reached['task reward']:.2f}, the gold reward at {reached['gold reward']:.2f} of {top:g} "
        f"({_averaged(runs)}).",
        "Task reward and gold reward against step, without a constraint: from some step on they "
        "part.",
    )


def result(folder: Path) -> Slide:
    """Gold reward under each constraint, seeds as bands."""
    task, top, runs = _recorded(folder)
    figure, axis = canvas(**SIZE)
    ends = _bands(axis, runs, "gold_reward")
    axis.axhline(top, color="#999999", linewidth=1)
    axis.set(xlabel="step", ylabel="gold reward (never trained on)", ylim=(0, 1.1 * top))
    label_ends(axis, *ends)
    said = ", ".join(f"{label} {value:.2f}" for label, (value, _) in ends[1].items())
    band = "; the band goes from the lowest to the highest" if len(runs["none"]) > 1 else ""
    return Slide(
        f"result-{task}",
        figure,
        f"{task.capitalize()}: gold reward of {top:g}, at the end: {said}. "
        f"{_averaged(runs).capitalize()}{band}.",
        f"Gold reward against step for each constraint. At the end: {said}.",
    )


def relaxing(folder: Path) -> Slide:
    """What the refiner changes under the dynamic constraint."""
    task, _, runs = _recorded(folder)
    figure, axis = canvas(**SIZE)
    at, ends = _bands(axis, {"dynamic": runs["dynamic"]}, "edit_ratio")
    first = float(series(runs["dynamic"], "edit_ratio")[1][:, 0].mean())
    last = next(iter(ends.values()))[0]
    axis.set(xlabel="step", ylabel="edit ratio: what the refiner changes", ylim=0)
    return Slide(
        f"relaxing-{task}",
        figure,
        f"{task.capitalize()}: the dynamic constraint switches itself off. The edit ratio goes "
        f"from {first:.3f} at the start to {last:.3f} at step {at:.0f}.",
        f"Edit ratio against step under the dynamic constraint, from {first:.3f} to {last:.3f}.",
    )


def refinement(folder: Path) -> Slide | None:
    """A response and its refinement, of those worth nothing the one that keeps most."""
    task, _, runs = _recorded(folder)
    rows = [row for run in runs["none"] for row in run.samples()]
    changed = [
        r for r in rows if r["refined"] and r["refined"] != r["response"] and r["gold_reward"] == 0
    ]
    if not changed:
        return None
    cut = [r for r in changed if len(r["refined"]) < len(r["response"])]  # excess taken out
    row = max(cut or changed, key=lambda r: len(r["refined"]) / (1 + len(r["response"])))
    figure, axis = canvas(**SIZE)
    axis.axis("off")
    axis.set(xlim=(0, LINE), ylim=(-14, 0))
    y = 0.0
    for head, kept in (("the policy wrote", "delete"), ("the refiner wrote", "insert")):
        axis.text(0, y, head, fontweight="bold", va="top")
        diff = word_diff(row["response"], row["refined"])
        y = _words(axis, [(op, text) for op, text in diff if op in ("equal", kept)], y - 1.3) - 1.6
    return Slide(
        f"refinement-{task}",
        figure,
        f"{task.capitalize()}: the reference model refines a response with few edits. Orange is "
        "left out, blue is new; the rest stays word by word.",
        f"The policy wrote: {visible(row['response'])} "
        f"The refiner wrote: {visible(row['refined'])}",
    )


def _averaged(runs: dict[str, list[RunFolder]]) -> str:
    seeds = len(runs["none"])
    return f"mean of {seeds} seeds" if seeds > 1 else "one seed"


def _recorded(folder: Path) -> tuple[str, float, dict[str, list[RunFolder]]]:
    """Task, gold maximum, and the runs of each of the three constraints."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    names = [name for name in LABELS if name in summary["methods"]]
    runs = {n: [RunFolder(folder / f"{n}-seed{s}") for s in summary["seeds"]] for n in names}
    return summary["task"], float(summary["gold_max"]), runs


def _bands(
    axis: Axes, runs: dict[str, list[RunFolder]], key: str
) -> tuple[float, dict[str, tuple[float, str]]]:
    """Mean and band of a metric for each constraint; the last step and {label: (value, name)}."""
    ends, last = {}, 0.0
    for name, folders in runs.items():
        at, values = series(folders, key)
        mean, last = values.mean(0), float(at[-1])
        axis.plot(at, mean, STYLES[name], color=colour(name), linewidth=2)
        axis.fill_between(at, values.min(0), values.max(0), color=colour(name), alpha=0.18, lw=0)
        ends[LABELS[name]] = (float(mean[-1]), name)
    return last, ends


def _words(axis: Axes, pieces: Sequence[tuple[str, str]], y: float) -> float:
    """Text in lines of LINE characters, each piece in the colour of its kind; the last line's y."""
    looks = {"equal": "#222222", "delete": colour("none"), "insert": colour("kl")}
    x = 0
    for op, text in pieces:
        for word in visible(text).replace("\n", " ⏎ ").split():
            if x + len(word) > LINE:
                x, y = 0, y - 1.1
            axis.text(x, y, word, color=looks[op], family="monospace", fontsize=13.5, va="top",
                      parse_math=False)  # fmt: skip
            x += len(word) + 1
    return y


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "out/figures")
    write(story(), place)
    print(f"{place / 'README.md'} lists them")
