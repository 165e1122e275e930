"""`--preset auto`: the largest preset that fits the memory of this machine's GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rftkit.config import PRESETS, RunConfig
from rftkit.errors import UserError
from rftkit.estimate import estimate
from rftkit.models import stays_on_cpu

DEFAULT_GB = 8.0  # a common consumer GPU, where none is at hand


def gpu_gb() -> float | None:
    """Memory of the current CUDA GPU in GB; None without one."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.mem_get_info()[1]) / 1e9


def best_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of the largest preset that fits, as `estimate` predicts; `given` come first.

    On a machine without a GPU, and for the embedded model, they are those of cpu_tiny.
    Raises UserError where none fits.
    """
    memory = gpu_gb()
    if memory is None or stays_on_cpu(given.get("device", "auto"), given.get("model", "tiny")):
        return PRESETS["cpu_tiny"]
    config = replace(RunConfig.from_dict(given), device="cuda")
    found = estimate(config, memory, given=given)
    name = found["largest_preset"]
    if name is None:
        raise UserError(
            f"preset: none fits {config.model!r} into {memory:.1f} GB; take a smaller --model, "
            "or set --token-budget, --prompts and --group yourself"
        )
    return PRESETS[name] | {"sampler": found["presets"][name]["sampler"]}
