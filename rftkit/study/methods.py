"""What the study compares: methods with their grids, and variations of the tuned methods.

The tables are the protocol; data/runs/PROTOCOL.md states them in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

# Steps of a run on each task: long enough that curves have settled or collapsed. The game is slow.
STEPS = {"dialogue": 160, "code": 120, "game": 240}
TASKS = tuple(STEPS)
LRS = (1.5e-4, 5e-4)
BETAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
LAMBDAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Twelve points as well: what has no coefficient spends its budget on the learning rate.
NONE_LRS = (1e-4, 1.5e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 8e-4, 1e-3, 1.3e-3, 1.6e-3, 2e-3)

Settings = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to train: fixed settings, and a grid of values of `axis` by learning rates.

    kind: what a figure groups it by. wave: lower ones run first. early: judged by its best
    evaluation and stopped there; its first stage is that of `first_stage`.
    """

    name: str
    label: str
    kind: str
    wave: int
    axis: str
    values: tuple[float, ...]
    settings: Settings = field(default_factory=dict)
    lrs: tuple[float, ...] = LRS
    early: bool = False
    first_stage: str = ""

    @property
    def slug(self) -> str:
        """The name as part of a path."""
        return self.name

    def points(self) -> list[Settings]:
        """The settings to try."""
        if self.axis == "lr":
            return [{"lr": lr} for lr in self.values]
        return [{self.axis: value, "lr": lr} for value in self.values for lr in self.lrs]


def _kl(name: str, label: str, wave: int, values: tuple[float, ...], **more: Any) -> Method:
    axis = "kl_target" if "adaptive" in name else "coef"
    return Method(name, label, "kl", wave, axis, values, {"constraint": "kl", **more})


def _refined(name: str, label: str, kind: str, wave: int, **more: Any) -> Method:
    return Method(name, label, kind, wave, "coef", LAMBDAS, {"constraint": name, **more})


METHODS = (
    Method("none", "no constraint", "none", 0, "lr", NONE_LRS, {"constraint": "none"}),
    _kl("kl-k3-loss", "KL, k3 loss", 0, BETAS, kl_form="k3-loss"),
    _refined("dynamic", "dynamic", "dynamic", 0),
    Method(
        "none-early", "no constraint, stopped early", "none", 0, "lr", NONE_LRS,
        {"constraint": "none"}, early=True, first_stage="none",
    ),
    _kl("kl-k1-reward", "KL, k1 in the reward", 1, (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        kl_form="k1-reward"),
    _kl("kl-k2-loss", "KL, k2 loss", 1, BETAS, kl_form="k2-loss"),
    # nats a token; β starts at 1 and follows the target
    _kl("kl-adaptive", "KL, adaptive β", 1, (0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
        kl_form="k3-loss", coef=1.0),
    _kl("kl-reset", "KL, reference reset", 1, BETAS, kl_form="k3-loss", reference_reset=50),
    _refined("dynamic-changed", "dynamic, changed only", "dynamic", 2,
             constraint="dynamic", sft_on="changed"),
    _refined("identity", "control: identity", "control", 2),
    _refined("fresh", "control: fresh", "control", 2),
    _refined("random-edit", "control: random edit", "control", 2),
)  # fmt: skip


@dataclass(frozen=True)
class Variation:
    """One change to a tuned method, at the tuned settings otherwise.

    of: a method, or "best KL" for the KL method that tuning preferred. dose: where it stands on
    the axis of its `group`; factor: of the tuned coefficient.
    """

    name: str
    part: str
    group: str
    of: str
    wave: int
    settings: Settings = field(default_factory=dict)
    dose: float = math.nan
    factor: float = 1.0
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (10, 11, 12)

    @property
    def slug(self) -> str:
        """The name as part of a path."""
        return self.name.replace(", ", "-").replace(" ", "-")


BEST_KL = "best KL"
# What a group turns, and the dose of the tuned method itself.
DOSES = {
    "share": ("share of responses refined", 1.0),
    "training": ("steps of the refiner's pre-training", 15_400.0),
    "damage": ("noise on the refiner's weights", 0.0),
    "lambda": ("λ, in units of the tuned one", 1.0),
    "rank": ("rank of the adapter", 8.0),
}


def _why(group: str, dose: float, factor: float = 1.0, **settings: Any) -> Variation:
    return Variation(f"{group} {dose:g}", "why", group, "dynamic", 3, settings, dose, factor)


def _limit(name: str, task: str, settings: Settings, *of: str) -> list[Variation]:
    return [
        Variation(f"{name}, {method}", "limits", name, method, 4, settings, tasks=(task,))
        for method in of
    ]


_ALL = ("none", BEST_KL, "dynamic")
_COURTESY = r" ?(?:Thank you(?: kindly)?|Thanks|Enjoy|You are welcome|My pleasure|Gladly)!"

VARIATIONS = (
    *[_why("share", share, refine_share=share) for share in (0.5, 0.25, 0.125)],
    *[_why("training", n, refiner_model=f"tiny-{n}") for n in (2612, 5800, 11_000)],
    *[_why("damage", noise, refiner_noise=noise) for noise in (0.1, 0.2, 0.4)],
    *[_why("lambda", factor, factor) for factor in (0.1, 0.3, 3.0, 10.0)],
    *[_why("rank", rank, lora_rank=rank) for rank in (2, 32)],
    # Nothing to hold back: the same task without a flaw in its reward.
    *_limit("no flaw", "code", {"task": "code-plain"}, *_ALL),
    *_limit("no flaw", "game", {"task": "game-plain"}, *_ALL),
    # A flaw that stays well-formed: a bonus for what was not asked.
    *_limit("fluent exploit", "dialogue", {"reward": "rftkit.study.exploits:upsell"}, *_ALL),
    # A refiner with a taste: no courtesy; no comments; never up.
    *_limit("biased refiner", "dialogue", {"refiner_cuts": _COURTESY}, "dynamic"),
    *_limit("biased refiner", "code", {"refiner_cuts": r"[ \t]*#[^\n]*"}, "dynamic"),
    *_limit("biased refiner", "game", {"refiner_cuts": r"\bup\b ?"}, "dynamic"),
    # Twice as long: does it hold?
    *[v for task in TASKS for v in _limit("twice as long", task, {"steps": 2 * STEPS[task]},
                                          BEST_KL, "dynamic")],
    # On the game it did not hold on one seed of three; does it with a stronger pull?
    Variation("twice as long at 3 lambda, dynamic", "limits", "twice as long at 3 λ", "dynamic", 4,
              {"steps": 2 * STEPS["game"]}, factor=3.0, tasks=("game",)),
    # On code identity ended as high as the best KL; does it hold, or only come later?
    *_limit("twice as long", "code", {"steps": 2 * STEPS["code"]}, "identity"),
)  # fmt: skip
