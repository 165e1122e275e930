"""What this machine can do at most: its rate of matrix products, and the limits that follow."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from rftkit.rollout import Rollouts
from rftkit.shape import Shape

REPEATS = 10


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock reads right."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def facts(device: torch.device) -> dict[str, Any]:
    """Names and numbers that a measurement must be read with."""
    name = platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "torch": torch.__version__,
    }


def rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """gflops: 10^9 operations a second in a large matrix product. bandwidth_gb_s: of a large copy.

    The best of several, for they serve as upper limits.
    """
    side, numbers = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 25)
    a = torch.randn(side, side, device=device, dtype=dtype)
    product = _fastest(device, lambda: a @ a)
    source = torch.zeros(numbers, device=device, dtype=dtype)
    target = torch.empty_like(source)
    copy = _fastest(device, lambda: target.copy_(source))
    return {
        "gflops": 2 * side**3 / product / 1e9,
        "bandwidth_gb_s": 2 * numbers * dtype.itemsize / copy / 1e9,  # read and written
    }


def _fastest(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of the fastest run of several."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def decoding_limits(
    shape: Shape, rollouts: Rollouts, rate: dict[str, float], size: int
) -> dict[str, float]:
    """Tokens a second that sampling these rollouts from dense weights cannot exceed.

    by_products: 2 operations a weight and token (output layer included), 4 a context token and
    query number. by_bandwidth: each pass reads all weights, and the keys and values of every row;
    no limit where they stay in a processor's cache, as a tiny model's do. size: bytes a number.
    """
    weights = shape.weights + shape.hidden * shape.vocab
    lengths = [
        (len(p), len(y)) for p, y in zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
    ]
    context = sum(p * n + n * (n + 1) // 2 for p, n in lengths)  # tokens attended to, in sum
    read = rollouts.tokens + sum(p for p, _ in lengths) // rollouts.group  # a prompt once a group
    operations = 2 * weights * read + 4 * shape.layers * shape.heads * context
    passes = max(n for _, n in lengths)
    cache = 2 * shape.layers * shape.kv_heads * context
    seconds = {
        "by_products": operations / (rate["gflops"] * 1e9),
        "by_bandwidth": (passes * weights + cache) * size / (rate["bandwidth_gb_s"] * 1e9),
    }
    return {name: rollouts.tokens / value for name, value in seconds.items()}
