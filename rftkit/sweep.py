"""Tuning: one constraint over coefficients, on seeds that no result uses; the best one recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rftkit.comparison import run_all_to_the_end
from rftkit.config import RunConfig
from rftkit.errors import DivergedError, UserError
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
    the end. One with a run that diverged is the worst: it has no mean, and the run says why in
    "diverged". Finished runs are kept. Raises DivergedError where no coefficient is left.
    """
    out, seeds = Path(out), list(dict.fromkeys(seeds or TUNING_SEEDS))
    coefs = list(dict.fromkeys(coefs or COEFS.get(config.constraint, ())))
    if config.constraint == "none":
        raise UserError("constraint: none has no weight to tune; choose another")
    if not coefs:
        raise UserError(f"coefs: give some for constraint {config.constraint!r}, as in 0.1,0.3,1")
    if len({f"{coef:g}" for coef in coefs}) < len(coefs):
        raise UserError("coefs: two are the same to six digits; leave one out")
    jobs = [
        (replace(config, coef=coef, seed=seed), out / f"{config.constraint}-{coef:g}-seed{seed}")
        for coef in coefs
        for seed in seeds
    ]
    diverged = run_all_to_the_end(jobs, workers, progress)
    rows = [_row(c, RunFolder(folder), diverged.get(folder, "")) for c, folder in jobs]
    golds = {c: [r["gold_reward"] for r in rows if r["coef"] == c] for c in coefs}
    means = {c: fmean(found) for c, found in golds.items() if None not in found}
    if not means:
        raise DivergedError(f"every coefficient diverged: {next(iter(diverged.values()))}")
    result = {
        "task": config.task,
        "constraint": config.constraint,
        "kl_form": config.kl_form,
        "steps": config.steps,
        "seeds": seeds,
        "best": max(means, key=means.__getitem__),
        "gold_reward": {f"{c:g}": means.get(c) for c in coefs},
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
    lines += map(_line, result["runs"])
    lines += [f"diverged: {r['diverged']}" for r in result["runs"] if "diverged" in r]
    return "\n".join([*lines, f"best coefficient: {result['best']:g}"])


def _line(row: dict[str, Any]) -> str:
    run = f"{row['coef']:>6g}{row['seed']:>6}"
    if "diverged" in row:
        return f"{run}{'diverged':>13}"
    return (
        f"{run}{row['gold_reward']:>13.2f}{row['best_gold_reward']:>7.2f}"
        f"{row['degenerate']:>12.0%}{row['kl']:>8.1f}"
    )


def _row(config: RunConfig, run: RunFolder, diverged: str) -> dict[str, Any]:
    metrics = run.metrics()
    gold = [m["gold_reward"] for m in metrics if m["gold_reward"] is not None]
    keys = ("task_reward", "gold_reward", "degenerate", "kl")
    return {
        "coef": config.coef,
        "seed": config.seed,
        **{key: None if diverged else metrics[-1][key] for key in keys},
        "best_gold_reward": max(gold, default=None),
        **({"diverged": diverged} if diverged else {}),
    }
