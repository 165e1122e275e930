"""Each optimisation taken out in turn: does training stay the same, and what does it cost?

`python tests/benchmarks/ab.py OUT [steps [variant ...]]` trains dialogue under the dynamic
constraint, on equal seeds, two runs at a time with one thread each, and writes OUT: gold reward at
the end and processor seconds a step. Floating-point sums in another order let the samples part
after some steps, so runs of one seed differ like runs of two seeds: what must agree is the mean
over seeds.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any
from unittest.mock import patch

SEEDS = (200, 201, 202, 203)
# Places to patch, with what: as if the optimisation had never been written.
VARIANTS: dict[str, dict[str, Callable[..., object]]] = {
    "as shipped": {},
    "every row reads its context": {"rftkit.scoring.shares_contexts": lambda net: False},
    "refined token by token": {"rftkit.refiner.verify_decode": lambda *a, **k: _plainly(*a, **k)},
    "freed memory given back": {"rftkit.allocator.keep_freed_memory": lambda: False},
    "sampled from 4 bits": {},
    "one micro-batch": {},
}


def _plainly(
    net: Any,
    contexts: Any,
    drafts: Any,
    *,
    max_new_tokens: int,
    eos_ids: Any,
    pad_id: int,
    **_: Any,
) -> Any:
    from rftkit.decoding import _plain

    return _plain(net, contexts, [max_new_tokens] * len(contexts), eos_ids, pad_id)


def run(variant: str, seed: int, steps: int) -> dict[str, float]:
    """Train once; gold reward at the end, and processor seconds of the median step."""
    import torch

    from rftkit import RunConfig, Trainer, allocator

    torch.set_num_threads(1)
    config = RunConfig(seed=seed, steps=steps, eval_every=steps)
    config.sampler = "direct" if variant == "sampled from 4 bits" else "dense"
    config.token_budget = 2**14 if variant == "one micro-batch" else config.token_budget
    with ExitStack() as stack:
        for place, instead in VARIANTS[variant].items():
            stack.enter_context(patch(place, instead))
        allocator.keep_freed_memory()
        gold, seconds, start = 0.0, [], time.process_time()
        for metrics in Trainer(config).steps():
            gold, now = metrics["gold_reward"], time.process_time()
            seconds.append(now - start)
            start = now
    return {"gold_reward": gold, "seconds": median(seconds[1:-1])}


def main(out: Path, steps: int = 60, *chosen: str) -> None:
    variants = [v for v in VARIANTS if v == "as shipped" or v in chosen or not chosen]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, max_tasks_per_child=1) as pool:
        jobs = {(v, s): pool.submit(run, v, s, steps) for s in SEEDS for v in variants}
        found = {job: future.result() for job, future in jobs.items()}
    base = fmean(found["as shipped", s]["seconds"] for s in SEEDS)
    report = {}
    for variant in variants:
        runs = [found[variant, seed] for seed in SEEDS]
        gold, seconds = ([r[key] for r in runs] for key in ("gold_reward", "seconds"))
        report[variant] = {
            "gold_reward": {"mean": fmean(gold), "sd": stdev(gold), "per_seed": gold},
            "cpu_seconds_per_step": {"mean": fmean(seconds), "per_seed": seconds},
            "times_as_shipped": fmean(seconds) / base,
        }
        print(f"{variant:<30}{fmean(gold):>7.3f} ±{stdev(gold):.3f}{fmean(seconds) / base:>7.2f}x")
    result = {"steps": steps, "seeds": SEEDS, "variants": report}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:])
