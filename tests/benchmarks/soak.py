"""A long run: does it end as it began? Memory, handles, processes, size of the log, speed.

`python tests/benchmarks/soak.py [OUT] [--steps N]` trains the embedded model in 4 bits under the
dynamic constraint for 2,000 steps, and writes what it measured to OUT (data/runs/soak.json). It
ends with status 1 where a promise is broken.

So that the first and the last steps can be compared, they do the same work: the random numbers
repeat every 100 steps, and the learning rate is so small that the policy's responses hardly change.
Speed is in processor seconds, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import torch

from rftkit import RunConfig, Trainer, trainer
from rftkit.allocator import keep_freed_memory
from rftkit.files import write_text
from rftkit.machine import facts
from rftkit.paths import DATA

CONFIG = RunConfig(
    prompts=2, group=2, lr=1e-6, eval_every=50, eval_prompts=8, save_every=100, samples=2,
)  # fmt: skip


def measure(
    config: RunConfig, steps: int, out: Path, on_step: Callable[[int], object] = lambda step: None
) -> dict[str, Any]:
    """Train `steps` steps in the folder `out`; what the start and the end of the run took.

    on_step: called with each step's number, for tests that break a promise.
    """
    window = min(100, steps // 3)  # steps at the start and at the end that are compared
    settled = window // 2  # steps until caches are full
    honest = trainer._seed
    me = psutil.Process()
    before = _holdings(me)
    rss, cpu, wall, held = [], [], [], {}
    log = out / "metrics.jsonl"
    with patch.object(trainer, "_seed", lambda seed, step, what: honest(seed, step % window, what)):
        run = Trainer(replace(config, steps=steps), out)
        clock, begun = time.process_time(), time.perf_counter()
        for row in run.steps():
            now, clock = clock, time.process_time()
            if row["step"] == steps:
                break
            cpu.append(clock - now)
            wall.append(row["seconds"])
            rss.append(me.memory_info().rss)
            on_step(row["step"])
            if row["step"] + 1 in (settled, window, steps):
                held[row["step"] + 1] = _holdings(me), log.stat().st_size
        minutes = (time.perf_counter() - begun) / 60
    early, late = median(rss[settled:window]), median(rss[settled - window :])
    pairs = [(step % window, step) for step in range(steps - window, steps)]
    return {
        "machine": facts(torch.device("cpu")),
        "model": config.model,
        "constraint": config.constraint,
        "steps": steps,
        "compared_steps": window,
        "minutes": minutes,
        "rss_gb": [early / 1e9, late / 1e9],
        "memory_growth": late / early - 1,
        "held_early_late_after": [held[settled][0], held[steps][0], _holdings(me)],
        "held_before": before,
        "log_bytes": held[steps][1],
        "log_bytes_predicted": held[window][1] / window * steps,
        "cpu_seconds": [median(cpu[:window]), median(cpu[-window:])],
        "wall_seconds": [median(wall[:window]), median(wall[-window:])],
        "speed_late_over_early": median(cpu[first] / cpu[last] for first, last in pairs),
    }


def broken(found: dict[str, Any]) -> list[str]:
    """The promises that a measurement does not keep, one line each."""
    early, late, after = found["held_early_late_after"]
    log = found["log_bytes"] / found["log_bytes_predicted"]
    promises = {
        f"memory grew by {found['memory_growth']:.1%}": found["memory_growth"] < 0.02,
        f"the last steps run at {found['speed_late_over_early']:.1%} of the first ones' speed": (
            found["speed_late_over_early"] > 0.95
        ),
        f"the log has {log:.1%} of the bytes predicted": abs(log - 1) < 0.05,
    }
    for name in early:
        more = late[name] - early[name]
        promises[f"{more} more {name} at the end than early on"] = more <= 0
    left = after["processes"] - found["held_before"]["processes"]
    promises[f"{left} processes left"] = left <= 0
    left = after["handles"] - late["handles"]
    promises[f"{left} handles left"] = left <= 0
    return [text for text, kept in promises.items() if not kept]


def _holdings(process: psutil.Process) -> dict[str, int]:
    handles = process.num_handles() if sys.platform == "win32" else process.num_fds()
    return {
        "handles": handles,
        "processes": len(process.children(recursive=True)),
        "threads": process.num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak test of a long run.")
    parser.add_argument("out", nargs="?", type=Path, default=DATA / "runs" / "soak.json")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    keep_freed_memory()  # as `rftkit train` does
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(CONFIG, arguments.steps, Path(folder, "run"))
    write_text(arguments.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    failures = broken(found)
    print("\n".join(failures) or "every promise is kept")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
