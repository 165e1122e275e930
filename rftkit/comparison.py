"""The main job: one task under each constraint, over seeds; a table, a figure, a summary.

Every run is a run folder of its own, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from rftkit.config import RunConfig
from rftkit.errors import DivergedError, UserError
from rftkit.guard import whole_step
from rftkit.metrics import bootstrap_ci
from rftkit.runs import RunFolder, write_text

log = logging.getLogger("rftkit")

WATCH_SECONDS = 2.0  # between looks at the run folders, whose records are read whole each time
_OWN_METRICS = ("gamed",)  # which a task may add (`Task.extra_metrics`)
# Slow constraints first, so that no worker is left with a long run at the end.
_SLOW_FIRST = ("random-edit", "dynamic", "fresh", "identity", "kl", "none")


def compare(
    task: str | None = None,
    constraints: Sequence[str] = ("none", "kl", "dynamic"),
    seeds: Sequence[int] = (0,),
    *,
    out: Path | str,
    config: RunConfig | None = None,
    workers: int = 0,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Train every constraint on every seed, write `out`, and return the summary.

    config: settings of all runs; `task` and keyword `settings` (steps=…, model=…, any other field
    of RunConfig) change it. workers: runs at a time; 0 = one a core on a CPU, one on a GPU.
    Writes summary.json, curves.png and one run folder a constraint and seed. Finished runs in
    `out` are kept, unfinished ones resumed; with more `steps` all of them go on. Raises
    DivergedError that names the runs that diverged, when the others have ended.
    """
    from rftkit.plots import curves, save
    from rftkit.tasks import task_of

    def slowness(name: str) -> int:
        return _SLOW_FIRST.index(name) if name in _SLOW_FIRST else -1

    if taken := {"seed", "constraint"} & settings.keys():
        raise UserError(f"compare: {' and '.join(sorted(taken))} go by seeds=… and constraints=…")
    out, seeds, constraints = Path(out), list(seeds), list(constraints)
    config = config or RunConfig()
    base = replace(config, task=task or config.task, **settings)
    if not constraints or not seeds:
        raise UserError("compare needs at least one constraint and one seed")
    if base.coef is not None and "kl" in constraints and set(constraints) - {"none", "kl"}:
        log.warning(
            "coef = %g is both β of KL and λ of the others; left unset, each has its tuned one",
            base.coef,
        )
    gold_max = task_of(base).gold_max
    configs = [
        RunConfig.from_dict(base.to_dict() | {"constraint": name, "seed": seed})
        for name in sorted(dict.fromkeys(constraints), key=slowness)
        for seed in dict.fromkeys(seeds)
    ]
    folders: dict[tuple[str, int], Path] = {
        (c.constraint, c.seed): out / f"{c.constraint}-seed{c.seed}" for c in configs
    }
    jobs = [(c, folders[c.constraint, c.seed]) for c in configs]
    if diverged := run_all_to_the_end(jobs, workers, progress):
        raise DivergedError(
            f"{len(diverged)} of {len(jobs)} runs diverged, the others are finished: "
            + "; ".join(diverged.values())
        )
    order = list(dict.fromkeys(constraints))
    seeds = list(dict.fromkeys(c.seed for c in configs))
    runs = {name: [RunFolder(folders[name, seed]) for seed in seeds] for name in order}
    summary = summarise(base.task, gold_max, base.steps, seeds, runs)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    save(out / "curves.png", curves(runs, base.task, gold_max))
    return summary


def summarise(
    task: str, gold_max: float, steps: int, seeds: list[int], runs: dict[str, list[RunFolder]]
) -> dict[str, Any]:
    """The contract's summary, from the last evaluation of each run (held-out prompts).

    ci95 is a bootstrap over seeds: with one seed it is that seed's value twice.
    """
    methods = {}
    for name, folders in runs.items():
        metrics = [run.metrics() for run in folders]
        last = [m[-1] for m in metrics]
        seconds = [row["seconds"] for m in metrics for row in m[1:-1]]
        methods[name] = {
            "coef": metrics[0][0]["coef"],
            "gold_reward": _spread([m["gold_reward"] for m in last]),
            "task_reward": _spread([m["task_reward"] for m in last]),
            "degenerate": _spread([m["degenerate"] for m in last]),
            "kl": _spread([m["kl"] for m in last]),
            "best_gold_reward": _spread(
                [max(r["gold_reward"] for r in m if r["gold_reward"] is not None) for m in metrics]
            ),
            "start_gold_reward": fmean(m[0]["gold_reward"] for m in metrics),
            **{k: _spread([m[k] for m in last]) for k in _OWN_METRICS if k in last[0]},
            "edit_ratio": [_ends(m, "edit_ratio") for m in metrics],
            "tokens": fmean(sum(row["tokens"] or 0 for row in m[:-1]) for m in metrics),
            "seconds_per_step": fmean(seconds) if seconds else None,
        }
    return {"task": task, "gold_max": gold_max, "steps": steps, "seeds": seeds, "methods": methods}


def table(summary: dict[str, Any]) -> str:
    """The summary as text, one line a method."""
    columns = (
        "constraint",
        "coef",
        "gold reward",
        "best",
        "task reward",
        "degenerate",
        "KL",
        "s/step",
    )
    lines = ["{:<12}{:>6}{:>13}{:>7}{:>13}{:>12}{:>8}{:>8}".format(*columns)]
    for name, m in summary["methods"].items():
        gold, best, reward, degenerate, kl = (
            m[key]["mean"]
            for key in ("gold_reward", "best_gold_reward", "task_reward", "degenerate", "kl")
        )
        lines.append(
            f"{name:<12}{m['coef']:>6g}{gold:>13.2f}{best:>7.2f}{reward:>13.2f}"
            f"{degenerate:>12.0%}{kl:>8.1f}{m['seconds_per_step'] or 0:>8.2f}"
        )
    lines.append(f"gold reward: at the end, of {summary['gold_max']:g}; best: on the way;")
    lines.append("rewards on held-out prompts; KL from the reference in nats a response")
    return "\n".join(lines)


def run_one(config: RunConfig, out: Path, threads: int = 0) -> None:
    """Train one run in its folder, from its last checkpoint if there is one."""
    import torch

    from rftkit.allocator import keep_freed_memory
    from rftkit.trainer import Trainer

    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    before = signal.signal(signal.SIGTERM, _stop_once)
    try:
        Trainer(config, out, resume=True).train(progress=False)
    except KeyboardInterrupt:  # asked to end: the run is saved, and no other shall begin
        os._exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def attempt(config: RunConfig, out: Path, threads: int = 0) -> str:
    """As `run_one`, for a run that may diverge, which is a result as well: why it did, or ""."""
    try:
        run_one(config, out, threads)
    except DivergedError as error:
        return str(error)
    return ""


def _stop_once(number: int, frame: Any) -> None:
    """SIGTERM between two steps: as Ctrl-C, and no second time while the run is being saved."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_all_to_the_end(
    jobs: Sequence[tuple[RunConfig, Path]], workers: int = 0, progress: bool = True
) -> dict[Path, str]:
    """As `run_all`, but a run that diverges ends no other: those that did, and why, by folder."""
    ended: dict[Path, str] = {}
    run_all(jobs, workers, progress, run=attempt, look=ended.update)
    return {
        folder: f"{config.constraint}, seed {config.seed}, in {folder}: {ended[folder]}"
        for config, folder in jobs
        if ended.get(folder)
    }


def run_all(
    jobs: Sequence[tuple[RunConfig, Path]],
    workers: int = 0,
    progress: bool = True,
    run: Callable[[RunConfig, Path, int], Any] = run_one,
    look: Callable[[dict[Path, Any]], None] = lambda ended: None,
) -> None:
    """Train each (config, run folder), several at a time; finished runs are kept.

    `run` trains one. `look` is called every two seconds with what the runs that ended gave, by
    folder; what it raises ends the others, which save themselves first. So do Ctrl-C and SIGTERM.
    """
    for c, folder in jobs:  # settle every folder first: a clash is told before any work is done
        RunFolder.create(folder, c, resume=True)
    if workers < 0:
        raise UserError(f"workers: {workers} must be at least 0")
    kept = [folder for c, folder in jobs if _finished(folder, c.steps)]
    if kept:
        log.warning("%d runs were finished already and are kept, as in %s", len(kept), kept[0])
    jobs = [(c, folder) for c, folder in jobs if folder not in kept]
    if not jobs:
        return
    workers = workers or _default_workers(jobs[0][0], len(jobs))
    steps = [c.steps for c, _ in jobs]
    context = multiprocessing.get_context("spawn")  # the one way that works on every system
    with (
        tqdm(total=sum(steps), desc=jobs[0][0].task, unit="step", disable=not progress) as bar,
        ProcessPoolExecutor(workers, context, _obey_the_parent) as pool,
        whole_step() as stop,
    ):
        threads = 1 if workers > 1 else 0
        futures = [pool.submit(run, config, out, threads) for config, out in jobs]

        def watch() -> None:
            _raise_first(futures)
            pairs = zip(futures, jobs, strict=True)
            ended = {out: future.result() for future, (_, out) in pairs if future.done()}
            _watch(bar, jobs, ended)
            look(ended)

        try:
            while not all(f.done() for f in futures):
                if stop.requested:
                    raise KeyboardInterrupt
                watch()
                wait(futures, timeout=WATCH_SECONDS, return_when=FIRST_EXCEPTION)
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()  # run folders stay whole; the next call goes on from them
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        watch()


def _watch(bar: Any, jobs: Sequence[tuple[RunConfig, Path]], ended: Collection[Path]) -> None:
    done, gold = 0, {}
    for config, out in jobs:
        if out in ended:  # of many runs, only those at work are read each time
            done += config.steps
            continue
        metrics = RunFolder(out).metrics()
        done += min(len(metrics), config.steps)
        values = [m["gold_reward"] for m in metrics if m["gold_reward"] is not None]
        if values:
            gold[config.constraint] = f"gold {values[-1]:.2f}"
    bar.n = done
    if gold:
        bar.set_postfix(gold)


def _obey_the_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and would be left over

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _raise_first(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        if future.done():
            try:
                future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a run's process was killed, perhaps for want of memory: the same command "
                    "goes on, with --workers 1 in less memory. A script of your own must call "
                    "rftkit under `if __name__ == '__main__':`"
                ) from None


def _default_workers(config: RunConfig, jobs: int) -> int:
    from rftkit.models import pick_device
    from rftkit.sandbox.pool import usable_cores

    most = min(jobs, usable_cores(), 61)  # Windows waits for no more processes at once
    return max(1, most) if pick_device(config.device, config.model).type == "cpu" else 1


def _finished(folder: Path, steps: int) -> bool:
    metrics = RunFolder(folder).metrics()
    return bool(metrics) and metrics[-1]["step"] == steps


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "ci95": bootstrap_ci(values), "per_seed": values}


def _ends(metrics: list[dict[str, Any]], key: str, width: int = 5) -> list[float] | None:
    """Mean of the first and of the last `width` values of a metric that may be missing."""
    values = [row[key] for row in metrics if row[key] is not None]
    return [fmean(values[:width]), fmean(values[-width:])] if values else None
