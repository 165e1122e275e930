"""Optimiser and random state in safetensors, so that a checkpoint never needs pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rftkit.errors import UserError


def save_state(
    path: Path, optimiser: torch.optim.Optimizer, extra: Mapping[str, torch.Tensor]
) -> None:
    """Write the optimiser's tensors, named by parameter position, and `extra` to one file."""
    tensors = dict(extra)
    for index, entry in optimiser.state_dict()["state"].items():
        for key, value in entry.items():
            tensors[f"optimiser.{index}.{key}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, path)


def load_state(path: Path, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Restore what `save_state` wrote into `optimiser`; return the extra tensors.

    All are copies: Windows deletes no file that a tensor is still mapped to.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    extra = {}
    for name, tensor in load_file(path).items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor.clone()
        else:
            extra[name] = tensor.clone()
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return extra


@contextmanager
def reading(path: Path, remedy: str = "choose another --out") -> Iterator[None]:
    """Inside, a checkpoint that is broken or lacks a part is a UserError that names it.

    remedy: what to do where it cannot be restored.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: the checkpoint is broken ({error}), or of another model; "
            f"restore it or {remedy}"
        ) from None
