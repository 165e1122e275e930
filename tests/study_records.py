"""Made-up records of a study: for testing what reads them, never a result."""

import random
from collections.abc import Callable
from typing import Any

from rftkit.study.plan import Job, Protocol

STARTS = {"none": 0.0, "kl": 0.7, "dynamic": 1.3}


def record(job: Job, config: Any, gold: float, model: str = "m") -> dict[str, Any]:
    """A record of `job` whose gold reward ends at `gold`."""
    steps = list(range(0, config.steps + 1, 10))
    n = len(steps)
    golds = [0.5 + (gold - 0.5) * i / max(1, n - 1) for i in range(n)]
    broken = max(0.0, 1 - gold)
    ends = {
        "step": config.steps, "gold_reward": gold, "heldout_task_reward": gold + 2 * broken,
        "degenerate": broken, "kl": 20.0 * broken + 1.0, "entropy": 0.5, "length": 17.0,
        "edit_ratio": 0.01, "changed": 0.1, "strength": 0.5, "pull": 0.1, "grad_norm": 0.2,
    }  # fmt: skip
    falling = [0.1 * (1 - i / n) for i in range(n)]
    curve = {
        "step": steps, "gold_reward": golds, "heldout_task_reward": golds,
        "degenerate": [broken * i / n for i in range(n)], "kl": [1.0 * i for i in range(n)],
        "coef": [1.0] * n, "edit_ratio": falling, "changed": falling, "strength": [0.5] * n,
        "pull": falling, "entropy": falling, "length": [17.0] * n,
        "generated": [1100 * s for s in steps],
    }  # fmt: skip
    return {
        "job": job.key, "failed": "", "model": model, "config": config.to_dict(), "versions": {},
        "final": ends, "tokens": 1000 * config.steps, "generated": 1100 * config.steps,
        "seconds": 0.8 * config.steps, "curve": curve, "samples": [],
    }  # fmt: skip


def gold_of(job: Job, config: Any) -> float:
    """Something plausible: best near the middle of the grid, a little noise by job."""
    noise = random.Random(job.key).gauss(0, 0.05)
    start = STARTS.get(config.constraint, 0.6)
    off = abs((config.coef or 2.0) - 2.0) / 20
    return max(0.0, min(1.5, start - off + noise)) if config.constraint != "none" else abs(noise)


def made_up(
    protocol: Protocol, stop: Callable[[Job], bool] = lambda job: False, model: str = "m"
) -> dict[str, dict[str, Any]]:
    """Records of all jobs for which `stop` is false, as far as choices allow."""
    records: dict[str, dict[str, Any]] = {}
    before = -1
    while len(records) > before:
        before = len(records)
        for job in protocol.jobs():
            config = None if job.key in records or stop(job) else protocol.config(job, records)
            if config is not None:
                records[job.key] = record(job, config, gold_of(job, config), model)
    return records
