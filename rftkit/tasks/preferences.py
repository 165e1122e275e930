"""A reward model learned from preference pairs (Bradley and Terry, 1952).

P(chosen beats rejected) = sigmoid(r(chosen) − r(rejected)), with r linear in named features.
Small enough to read, and wrong in the way large ones are: it extrapolates what it liked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Features = Mapping[str, float]


class LinearRewardModel:
    """r(x, y) = Σ weight[f] · feature[f]; features it has no weight for count nothing."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights = dict(weights)

    def __call__(self, features: Features) -> float:
        return sum(self.weights.get(name, 0.0) * value for name, value in features.items())

    @classmethod
    def load(cls, path: Path) -> LinearRewardModel:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        text = json.dumps(self.weights, indent=1, sort_keys=True) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")

    def agreement(self, pairs: Sequence[tuple[Features, Features]]) -> float:
        """Share of (chosen, rejected) pairs that it ranks as the preferences do."""
        return sum(self(good) > self(bad) for good, bad in pairs) / len(pairs)


def fit(pairs: Sequence[tuple[Features, Features]], l2: float = 0.01) -> LinearRewardModel:
    """Maximum likelihood of (chosen, rejected) feature pairs, with a small L2 penalty.

    Convex, so LBFGS from zero gives the one answer.
    """
    import torch

    names = sorted({name for pair in pairs for features in pair for name in features})
    x = torch.tensor(
        [[good.get(name, 0.0) - bad.get(name, 0.0) for name in names] for good, bad in pairs],
        dtype=torch.float64,
    )  # [pairs, features]
    weights = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        likelihood = torch.nn.functional.logsigmoid(x @ weights).mean()
        loss = -likelihood + l2 * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return LinearRewardModel({n: round(w, 4) for n, w in zip(names, weights.tolist(), strict=True)})
