"""Muon in single precision, for the matrices of the embedded model.

torch.optim.Muon orthogonalises in bf16, which processors without such instructions emulate at less
than a tenth of the speed. The rule is the same (Jordan et al., 2024; step size as Liu et al., 2025,
"Muon is Scalable for LLM Training"); matrices of one shape are worked on together.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; updates as large as AdamW's. Parameters are matrices."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learned = sorted((p for p in group["params"] if p.grad is not None), key=_shape)
            for shape, same in groupby(learned, key=_shape):
                matrices = list(same)
                updates = orthogonal(torch.stack([self._momentum(p, group) for p in matrices]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(matrices, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)

    def _momentum(self, p: torch.nn.Parameter, group: dict[str, Any]) -> torch.Tensor:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        assert p.grad is not None
        average = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(average, group["momentum"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About U Vᵀ of each matrix U S Vᵀ [matrices, rows, columns], by Newton and Schulz's iteration.

    Singular values end between about 0.7 and 1.2, which is near enough.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _shape(p: torch.Tensor) -> tuple[int, ...]:
    return tuple(p.shape)
