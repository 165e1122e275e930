"""Where the time of one training step goes: a table of its parts, and a trace to look into.

The trace opens in Perfetto (ui.perfetto.dev) or chrome://tracing. Its recording slows a step down,
so the table comes from steps of its own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from rftkit import batch, machine
from rftkit.allocator import keep_freed_memory
from rftkit.bench import fixed_work
from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.models import load_policy
from rftkit.trainer import Trainer

ROUNDS = 5


def profile_step(config: RunConfig, out: Path | str) -> dict[str, Any]:
    """Time the parts of the bench's step and write `out`/trace.json of another one.

    The constraint is dynamic, or KL for a model that has no refiner.
    Returns trace (its path), total and seconds: medians over steps by part, in the order of a
    step; "other" is the rest. Raises UserError where `out` cannot be written.
    """
    path = Path(out) / "trace.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    keep_freed_memory()
    policy = load_policy(
        config.model, config.precision, config.device, lora_rank=config.lora_rank, seed=config.seed
    )
    constraint = "dynamic" if policy.refines_natively else "kl"
    settings = replace(fixed_work(config, ROUNDS + 2), constraint=constraint)
    trainer = Trainer(settings, policy=policy)
    steps = trainer.steps()
    found: list[dict[str, float]] = []
    for _ in range(ROUNDS + 1):
        with _parts(trainer) as seconds:
            start = time.perf_counter()
            next(steps)
            machine.synchronise(trainer.policy.device)
        total = time.perf_counter() - start
        found.append(dict(seconds) | {"other": total - sum(seconds.values()), "total": total})
    cuda = [ProfilerActivity.CUDA] if trainer.policy.device.type == "cuda" else []
    with _parts(trainer), profile(activities=[ProfilerActivity.CPU, *cuda]) as profiler:
        next(steps)
    profiler.export_chrome_trace(str(path))
    counted = found[1:]  # the first step is warm-up
    parts = {name: median(f[name] for f in counted) for name in counted[0]}
    return {"trace": str(path), "total": parts.pop("total"), "seconds": parts}


def table(result: dict[str, Any]) -> str:
    """Seconds and share of each part of a step, as text."""
    lines = [f"{'part of a step':<16}{'seconds':>9}{'share':>8}"]
    for name, seconds in [*result["seconds"].items(), ("total", result["total"])]:
        lines.append(f"{name:<16}{seconds:>9.3f}{seconds / result['total']:>8.0%}")
    return "\n".join([*lines, f"trace: {result['trace']} (open it in ui.perfetto.dev)"])


@contextmanager
def _parts(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Inside, the parts of `trainer`'s steps add their seconds up and appear in a trace by name."""
    device = trainer.policy.device
    seconds: dict[str, float] = defaultdict(float)

    def named(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            machine.synchronise(device)
            start = time.perf_counter()
            with record_function(part):
                result = work(*args, **kwargs)
                machine.synchronise(device)
            seconds[part] += time.perf_counter() - start
            return result

        return run

    places: list[tuple[Any, str, str]] = [
        (trainer.sampler, "sample", "sampling"),
        (trainer.task, "score", "scoring"),
        (
            trainer.constraint,
            "prepare",
            "reference" if trainer.constraint.name == "kl" else "refining",
        ),
        (batch, "target_log_probs", "forward"),
        (torch.autograd, "grad", "backward"),
        (trainer.optimiser, "step", "optimiser"),
        (trainer.sampler, "refresh", "dense copy"),
    ]
    with ExitStack() as stack:
        for owner, name, part in places:
            work = getattr(owner, name)
            stack.enter_context(patch.object(owner, name, named(part, work)))
        yield seconds
