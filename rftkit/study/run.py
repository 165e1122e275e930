"""Doing the study: the jobs whose settings are known, several at a time, record by record.

Interrupted in any way, the same command goes on: what has a record is skipped, an unfinished run
folder is resumed from its checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rftkit.comparison import attempt, run_all
from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.files import writing
from rftkit.guard import sole_writer
from rftkit.paths import learned_tasks
from rftkit.runs import RunFolder
from rftkit.study.plan import Job, Protocol, hours
from rftkit.study.records import RecordFiles, condense, sha256


class TimeUpError(Exception):
    """No more time: the runs at work were saved in the middle."""


class Study:
    """A protocol, the folder of its runs, and the folder of its records."""

    def __init__(self, protocol: Protocol, out: Path, records: Path):
        self.protocol, self.out = protocol, out
        self.model = sha256(protocol.common.get("model", "tiny"))
        self.files = RecordFiles(records, protocol.jobs(), self.model)
        self.records = self.files.read()
        self._check()

    def work(
        self,
        only: Sequence[str] = (),
        parts: Sequence[str] = (),
        workers: int = 0,
        limit_minutes: float = 0.0,
        progress: bool = True,
    ) -> int:
        """Do what is left, or what is left of some of it (`Protocol.jobs`); return how many jobs
        wait for tuning that was not asked for.

        Raises TimeUpError when the time is up, everything saved.
        """
        self._learned(only)
        end = time.monotonic() + 60 * limit_minutes if limit_minutes else float("inf")
        lock = self.out / "study.lock"
        with writing(lock):
            self.out.mkdir(parents=True, exist_ok=True)
            lock.touch()
        with sole_writer(lock):
            while batch := self._ready(only, parts):
                self._batch(batch, workers, end, progress)
        return len(self.left(only, parts))

    def left(self, only: Sequence[str] = (), parts: Sequence[str] = ()) -> list[Job]:
        """Jobs without a record, the most useful first."""
        jobs = self.protocol.jobs(only, parts)
        return [job for job in jobs if job.key not in self.records]

    def status(self, only: Sequence[str] = (), parts: Sequence[str] = ()) -> str:
        """What is done, what is left, and how long it takes, by part."""
        seconds = self.seconds()
        lines = [f"{'part':<8}{'done':>6}{'left':>6}{'core-hours left':>17}"]
        chosen = self.protocol.jobs(only, parts)
        left = self.left(only, parts)
        for part in dict.fromkeys(job.part for job in chosen):
            mine = [job for job in left if job.part == part]
            done = sum(job.part == part for job in chosen) - len(mine)
            lines.append(f"{part:<8}{done:>6}{len(mine):>6}{hours(mine, seconds):>17.1f}")
        total = hours(left, seconds)
        lines.append(f"{'all':<8}{len(chosen) - len(left):>6}{len(left):>6}{total:>17.1f}")
        measured = ", ".join(f"{task} {s:.2f}" for task, s in seconds.items())
        told = f"{measured}; evaluations come on top" if measured else "not measured, 1 is assumed"
        lines.append(f"seconds a step: {told}")
        failed = [key for key, record in self.records.items() if record["failed"]]
        lines += [f"broke: {key}: {self.records[key]['failed']}" for key in failed]
        return "\n".join(lines)

    def seconds(self) -> dict[str, float]:
        """Measured seconds a step by task."""
        found: dict[str, float] = {}
        for task in self.protocol.tasks:
            rows = [r for k, r in self.records.items() if self.files.order[k].task == task]
            steps = sum(r["final"]["step"] for r in rows)
            if steps:
                found[task] = sum(r["seconds"] for r in rows) / steps
        return found

    def _ready(self, only: Sequence[str], parts: Sequence[str]) -> list[tuple[Job, RunConfig]]:
        """The most useful jobs that can be done now: those of the lowest wave."""
        ready = []
        for job in self.left(only, parts):
            config = self.protocol.config(job, self.records)
            if config is not None:
                ready.append((job, config))
        first = min((job.wave for job, _ in ready), default=0)
        return [(job, config) for job, config in ready if job.wave == first]

    def _batch(
        self, batch: list[tuple[Job, RunConfig]], workers: int, end: float, progress: bool
    ) -> None:
        jobs = {self.folder(job): job for job, _ in batch}

        def look(ended: dict[Path, str]) -> None:
            for folder, failed in ended.items():
                if jobs[folder].key not in self.records:
                    self._keep(jobs[folder], failed)
            if time.monotonic() > end:
                raise TimeUpError

        look({})
        for job, config in batch:  # finished, but killed before the record was written
            if _ended(RunFolder(self.folder(job)), config):
                self._keep(job)
        work = [(c, self.folder(job)) for job, c in batch if job.key not in self.records]
        if work:
            run_all(work, workers, progress, run=attempt, look=look)

    def _keep(self, job: Job, failed: str = "") -> None:
        record = condense(job, RunFolder(self.folder(job)), self.model, failed)
        self.files.add(record)
        self.records[job.key] = record
        gold = record["final"]["gold_reward"]
        tqdm.write(f"{job.key}: {failed or f'gold {gold:.2f}'}", file=sys.stderr)

    def folder(self, job: Job) -> Path:
        """The job's run folder."""
        return self.out / job.key

    def _learned(self, only: Sequence[str]) -> None:
        """Raise UserError where the model has not learned a task: before hours of the others."""
        known = learned_tasks(str(self.protocol.common.get("model", "tiny")))
        if known is None:
            return
        asked = dict.fromkeys(job.task for job in self.protocol.jobs(only))
        if missing := [task for task in asked if task not in known]:
            able = ",".join(task for task in asked if task in known)
            raise UserError(
                f"the model has not learned {', '.join(missing)}; give --only {able or 'others'}"
            )

    def _check(self) -> None:
        """Records must be what the protocol asks for, given the records before them."""
        for job in self.protocol.jobs():
            record, config = self.records.get(job.key), self.protocol.config(job, self.records)
            if record is None or config is None:
                continue
            wanted = config.to_dict()
            other = [k for k, v in wanted.items() if record["config"].get(k, v) != v]
            if other:
                raise UserError(
                    f"{self.files.folder}: {job.key} was made with another {', '.join(other)} "
                    "than the protocol asks for; delete that record"
                )


def _ended(run: RunFolder, config: RunConfig) -> bool:
    """Whether the folder holds this very run, at its end."""
    if not (run.path / "config.json").exists() or run.config() != config:
        return False
    rows: list[dict[str, Any]] = run.metrics()
    return bool(rows) and rows[-1]["step"] == config.steps
