"""Toy policy: all its responses as bars that move under each constraint, exactly.

Over the bars stand q, what the refiner makes of the policy (the dynamic constraint pulls there),
and π*, the best policy under KL. See `rftkit.toy` for the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rftkit.plots import COLOURS, LABELS, STYLES
from rftkit.toy import Constraint, History, Scene, boltzmann, cafe, train
from rftkit.widgets.parts import (
    Explorer,
    constraint_label,
    draw,
    legend_below,
    panels,
    player,
    row,
    slider,
    tidy,
)

NAMES: tuple[Constraint, ...] = ("none", "kl", "dynamic")
COEFS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0)
STEPS = (*range(0, 40, 2), *range(40, 201, 10))  # most happens early

Coefs = Mapping[Constraint, float]


def toy_figure(
    scene: Scene, histories: Mapping[Constraint, History], step: int, coefs: Coefs
) -> Figure:
    """Bars for each constraint at `step`; below, the expectations over all steps."""
    figure, (bars, curves) = panels(2, 3, 12, 6.8)
    highest = max(float(history.probs.max()) for history in histories.values())
    for axis, name in zip(bars, NAMES, strict=True):
        _bars(axis, scene, name, histories[name].probs[step], coefs)
        axis.set_ylim(0, 1.35 * highest)  # room for a legend above the bars
    bars[0].set_ylabel("probability")
    for axis, (title, lines) in zip(curves, _curves(scene, histories).items(), strict=True):
        for name, values in lines.items():
            axis.plot(values, STYLES[name], color=COLOURS[name], linewidth=2, label=LABELS[name])
        axis.axvline(step, color="#777777", linewidth=1)
        tidy(axis, title)
    legend_below(figure, curves[0], 0.13)
    return figure


def _bars(axis: Axes, scene: Scene, name: Constraint, probs: Tensor, coefs: Coefs) -> None:
    reference, texts = scene.reference.probs().detach(), scene.reference.sequences()
    places = range(len(texts))
    axis.bar(places, reference.numpy(), width=0.9, color="#DDDDDD", label="reference")
    axis.bar(places, probs.numpy(), width=0.6, color=COLOURS[name], label="policy π")
    above: dict[str, Any] = {"color": "black", "markersize": 6, "fillstyle": "none"}
    if name == "dynamic":
        axis.plot(places, probs @ scene.refiner, "D", label="q, the policy refined", **above)
    if name == "kl":
        best = boltzmann(reference, scene.task_rewards, coefs["kl"])
        axis.plot(places, best, "o", label="π*, best under KL", **above)
    tidy(axis, constraint_label(name, coefs.get(name, 0.0)), x="response")
    axis.grid(visible=False)
    axis.set_xticks(places, texts, rotation=90, family="monospace", fontsize=8)
    axis.legend(frameon=False, fontsize=9, loc="upper right")


def _curves(
    scene: Scene, histories: Mapping[Constraint, History]
) -> dict[str, dict[Constraint, Tensor]]:
    """Title of a panel → its lines [steps] by constraint."""
    pulled = {name: history for name, history in histories.items() if name != "none"}
    return {
        "expected task reward": {n: h.probs @ scene.task_rewards for n, h in histories.items()},
        "expected gold reward": {n: h.probs @ scene.gold_rewards for n, h in histories.items()},
        "pull: size of the constraint's gradient": {n: h.pull for n, h in pulled.items()},
    }


class ToyExplorer(Explorer):
    """Sliders for the step, β and λ; three policies move side by side."""

    def __init__(self, scene: Scene | None = None):
        self.scene = scene or cafe()
        self._train = cache(lambda name, coef: train(self.scene, name, coef, STEPS[-1]))
        self.step = slider(STEPS, "step", 20)
        self.beta = slider(COEFS, "β of KL", 1.0)
        self.lam = slider(COEFS, "λ of dynamic", 1.0)
        super().__init__([row(player(self.step, 400), self.step), row(self.beta, self.lam)])
        for control in (self.step, self.beta, self.lam):
            control.observe(self.refresh, "value")
        self.refresh()

    def html(self) -> str:
        step = self.step.value
        coefs: Coefs = {"kl": self.beta.value, "dynamic": self.lam.value}
        histories = {name: self._train(name, coefs.get(name, 0.0)) for name in NAMES}
        gold = {n: h.probs[step] @ self.scene.gold_rewards for n, h in histories.items()}
        said = ", ".join(f"{LABELS[name]} {float(value):.2f}" for name, value in gold.items())
        return draw(
            lambda: toy_figure(self.scene, histories, step, coefs),
            f"Toy policy at step {step}. Expected gold reward: {said}.",
        )
