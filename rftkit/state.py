"""Optimiser and random state in safetensors, so that a checkpoint never needs pickle.

Folders are swapped in whole: a reader finds the old checkpoint or the new one, never half of one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


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
    """Restore what `save_state` wrote into `optimiser`; return the extra tensors."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    extra = {}
    for name, tensor in load_file(path).items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
        else:
            extra[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return extra


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, then swap it in for `folder`."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        if leftover.exists() and (leftover is new or folder.exists()):
            shutil.rmtree(leftover)
    new.mkdir(parents=True)
    write(new)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: Path) -> Path | None:
    """`folder`, or its predecessor if a crash fell between the two renames, or None."""
    old = folder.with_name(folder.name + ".old")
    return next((path for path in (folder, old) if path.exists()), None)
