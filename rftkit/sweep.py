"""Tuning: one constraint over coefficients, on seeds that no result uses; the best one recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rftkit.comparison import run_all
from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.runs import RunFolder, write_text

TUNING_SEEDS = (100, 101)  # never the seeds of a result
COEFS = {"kl": (0.1, 0.2, 0.4, 0.8, 1.6, 3.2), "dynamic": (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)}


def sweep(
    config: RunConfig,
    coefs: Sequence[float] = (),
    seeds: Sequence[int] = (),
    *,
    out: Path | str,
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `config` with each coefficient on each seed; write `out`/sweep.json and return it.

    seeds: TUNING_SEEDS unless given. Best is the coefficient with the highest mean gold reward at
    the end. Finished runs are kept.
    """
    out, seeds = Path(out), list(seeds or TUNING_SEEDS)
    coefs = list(dict.fromkeys(coefs or COEFS.get(config.constraint, ())))
    if not coefs:
        raise UserError(f"coefs: give some for constraint {config.constraint!r}, as in 0.1,0.3,1")
    jobs = [
        (replace(config, coef=coef, seed=seed), out / f"{config.constraint}-{coef:g}-seed{seed}")
        for coef in coefs
        for seed in seeds
    ]
    run_all(jobs, workers, progress)
    rows = [_row(c, RunFolder(folder)) for c, folder in jobs]
    means = {c: fmean(r["gold_reward"] for r in rows if r["coef"] == c) for c in coefs}
    result = {
        "task": config.task,
        "constraint": config.constraint,
        "kl_form": config.kl_form,
        "steps": config.steps,
        "seeds": seeds,
        "best": max(means, key=means.__getitem__),
        "gold_reward": {f"{c:g}": mean for c, mean in means.items()},
        "runs": rows,
    }
    write_text(out / "sweep.json", json.dumps(result, indent=1) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """The sweep as text, one line a run."""
    lines = [
        "{:>6}{:>6}{:>13}{:>7}{:>12}{:>8}".format(
            "coef", "seed", "gold reward", "best", "degenerate", "KL"
        )
    ]
    lines += [
        f"{r['coef']:>6g}{r['seed']:>6}{r['gold_reward']:>13.2f}{r['best_gold_reward']:>7.2f}"
        f"{r['degenerate']:>12.0%}{r['kl']:>8.1f}"
        for r in result["runs"]
    ]
    return "\n".join([*lines, f"best coefficient: {result['best']:g}"])


def _row(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    metrics = run.metrics()
    gold = [m["gold_reward"] for m in metrics if m["gold_reward"] is not None]
    keys = ("task_reward", "gold_reward", "degenerate", "kl")
    return {
        "coef": config.coef,
        "seed": config.seed,
        **{key: metrics[-1][key] for key in keys},
        "best_gold_reward": max(gold),
    }
