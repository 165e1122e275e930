"""Muon in single precision: orthogonal updates, and the same steps as torch's own in bf16."""

import pytest
import torch

from rftkit.tiny.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_updates_are_about_orthogonal(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    found = orthogonal(torch.randn(shape, generator=generator))
    sizes = torch.linalg.svdvals(found)
    assert found.shape == shape
    assert 0.5 < float(sizes.min()) <= float(sizes.max()) < 1.3


def test_a_matrix_alone_and_among_others_gets_the_same_update() -> None:
    stack = torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(orthogonal(stack)[2:3], orthogonal(stack[2:3]), atol=1e-5)


def test_steps_are_those_of_torch_but_for_rounding() -> None:
    torch.manual_seed(0)
    start = [torch.randn(12, 12), torch.randn(20, 8), torch.randn(12, 12)]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in "ab")
    optimisers = (
        Muon(ours, 1e-2, weight_decay=0.1),
        torch.optim.Muon(theirs, 1e-2, 0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for first, mine, other in zip(start, ours, theirs, strict=True):
        moved = float((other - first).detach().norm())
        assert moved > 0
        assert float((mine - other).detach().norm()) < 0.05 * moved  # bf16 has three digits
