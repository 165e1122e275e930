"""The protocol as a list of jobs. What a later job trains with follows from earlier records.

Staged tuning, by the same rule for every method: all points on one seed, the best few of them on
the other tuning seeds, the best of those by mean gold reward at the end. No result seed has any
part in a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rftkit.config import RunConfig
from rftkit.study.methods import BEST_KL, METHODS, STEPS, VARIATIONS, Method, Settings, Variation

PARTS = ("tuning", "result", "why", "limits")
GUESSED_SECONDS = 1.0  # a step, evaluations included, before any was measured

Record = Mapping[str, Any]
Records = Mapping[str, Record]  # by the job's key


@dataclass(frozen=True)
class Job:
    """One run. Its key is a name that never changes; its settings may follow from records."""

    key: str
    task: str
    part: str
    stage: str
    name: str  # of its method or variation
    place: int  # of its point in the grid, or its rank in the first stage
    seed: int
    steps: int
    wave: int


@dataclass(frozen=True)
class Protocol:
    """Everything that decides the study."""

    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)  # by task
    methods: tuple[Method, ...] = METHODS
    variations: tuple[Variation, ...] = VARIATIONS
    tuning_seeds: tuple[int, ...] = (100, 101)
    result_seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    kept: int = 3  # points that the first stage passes on
    common: Settings = field(default_factory=lambda: {"model": "tiny", "precision": "nf4"})

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.steps)

    # The list of jobs

    def jobs(self, only: Sequence[str] = (), parts: Sequence[str] = ()) -> list[Job]:
        """All jobs in the order in which they are worth doing, or some of them.

        only: a task, or with a method or variation ("code/fresh"), each the beginning of a key.
        """
        found = [job for task in self.tasks for job in self._jobs(task)]
        order = {"first": 0, "second": 1}
        found.sort(key=lambda job: (job.wave, order.get(job.stage, 2)))  # stable: tasks in turn
        return [
            job
            for job in found
            if (not only or job.key.startswith(tuple(f"{name}/" for name in only)))
            and (not parts or job.part in parts)
        ]

    def _jobs(self, task: str) -> list[Job]:
        def job(part: str, stage: str, of: Method | Variation, at: int, seed: int, n: int) -> Job:
            label = f"{stage}{at}" if stage in ("first", "second") else stage
            key = f"{task}/{of.slug}/{label}/seed{seed}"
            return Job(key, task, part, stage, of.name, at, seed, n, of.wave)

        jobs, whole = [], self.steps[task]
        for m in self.methods:
            if not m.first_stage:
                seed = self.tuning_seeds[0]
                for i in range(len(m.points())):
                    jobs.append(job("tuning", "first", m, i, seed, whole))
            for rank in range(self.kept):
                for seed in self.tuning_seeds[1:]:
                    jobs.append(job("tuning", "second", m, rank, seed, whole))
            for seed in self.result_seeds:
                jobs.append(job("result", "result", m, 0, seed, whole))
        for v in self.variations:
            for seed in v.seeds if task in v.tasks else ():
                steps = v.settings.get("steps", whole)
                jobs.append(job(v.part, v.part, v, 0, seed, steps))
        return jobs

    def method(self, name: str) -> Method:
        return next(m for m in self.methods if m.name == name)

    # What a job trains with

    def config(self, job: Job, records: Records) -> RunConfig | None:
        """The job's settings; None where a choice that it needs is not made yet."""
        if job.stage in ("first", "second"):
            method = self.method(job.name)
            points = method.points()
            if job.stage == "second":
                ranking = self.ranking(job.task, method, records)
                if ranking is None:
                    return None
                points = [points[i] for i in ranking]
            chosen: Settings | None = method.settings | points[job.place]
        elif job.part == "result":
            chosen = self.choice(job.task, job.name, records)
        else:
            chosen = self._varied(job, records)
        if chosen is None:
            return None
        whole = {"task": job.task, "steps": job.steps, "seed": job.seed} | self.common | chosen
        return RunConfig.from_dict(whole)

    def _varied(self, job: Job, records: Records) -> Settings | None:
        own = (v for v in self.variations if v.name == job.name and job.task in v.tasks)
        variation = next(own)
        name = variation.of
        if name == BEST_KL:
            name = self.best_kl(job.task, records) or ""
        chosen = self.choice(job.task, name, records) if name else None
        if chosen is None:
            return None
        if variation.factor != 1:
            chosen["coef"] *= variation.factor
        return chosen | variation.settings

    def ranking(self, task: str, method: Method, records: Records) -> list[int] | None:
        """Places of the points that the first stage passes on, the best first."""
        first = self.method(method.first_stage) if method.first_stage else method
        seed, places = self.tuning_seeds[0], range(len(first.points()))
        rows = [records.get(f"{task}/{first.name}/first{i}/seed{seed}") for i in places]
        if any(row is None for row in rows):
            return None
        scores = [_score(row, method.early) for row in rows if row is not None]
        return sorted(places, key=lambda i: -scores[i])[: self.kept]

    def tuned(self, task: str, name: str, records: Records) -> list[tuple[Settings, float]] | None:
        """Settings and mean gold reward of each point of the second stage; None before its end."""
        method = self.method(name)
        ranking = self.ranking(task, method, records)
        if ranking is None:
            return None
        found = []
        for rank, place in enumerate(ranking):
            first, *others = self.tuning_seeds
            keys = [f"{task}/{method.first_stage or name}/first{place}/seed{first}"]
            keys += [f"{task}/{name}/second{rank}/seed{seed}" for seed in others]
            if any(key not in records for key in keys):
                return None
            rows = [records[key] for key in keys]
            point = method.settings | method.points()[place]
            if method.early:
                step, gold = _best_step(rows)
                point |= {"steps": step}
            else:
                gold = fmean(_score(row, False) for row in rows)
            found.append((point, gold))
        return found

    def choice(self, task: str, name: str, records: Records) -> Settings | None:
        """What tuning chose for a method; None before it has."""
        found = self.tuned(task, name, records)
        return None if found is None else dict(max(found, key=lambda pair: pair[1])[0])

    def best_kl(self, task: str, records: Records, complete: bool = True) -> str | None:
        """The KL method with the highest tuned gold reward; None before all (or any) are tuned."""
        names = [m.name for m in self.methods if m.kind == "kl"]
        tuned = {name: self.tuned(task, name, records) for name in names}
        best = {name: max(gold for _, gold in rows) for name, rows in tuned.items() if rows}
        if not best or (complete and len(best) < len(names)):
            return None
        return max(best, key=best.__getitem__)


def _score(record: Record, early: bool) -> float:
    """What tuning goes by: gold reward at the end, or its best evaluation; broken runs last."""
    if record["failed"]:
        return float("-inf")
    return max(_golds(record).values()) if early else float(record["final"]["gold_reward"])


def _golds(record: Record) -> dict[int, float]:
    curve = record["curve"]
    pairs = zip(curve["step"], curve["gold_reward"], strict=True)
    return {step: gold for step, gold in pairs if gold is not None}


def _best_step(rows: Sequence[Record]) -> tuple[int, float]:
    """The step (at least 1) with the highest mean gold reward over the runs, and that mean."""
    golds = [_golds(row) for row in rows]
    steps = sorted(set.intersection(*(set(g) for g in golds)) - {0})
    means = {step: fmean(g[step] for g in golds) for step in steps}
    best = max(means, key=means.__getitem__)
    return best, means[best]


PROTOCOL = Protocol()


def hours(jobs: Sequence[Job], seconds: Mapping[str, float] | None = None) -> float:
    """Core-hours of jobs, from seconds a step by task where they were measured."""
    known = seconds or {}
    return sum(job.steps * known.get(job.task, GUESSED_SECONDS) for job in jobs) / 3600


def describe(protocol: Protocol = PROTOCOL) -> str:
    """The tables of PROTOCOL.md."""
    lines = ["| method | fixed settings | tuned setting and its values | learning rates | order |"]
    lines.append("|---|---|---|---|---|")
    for m in protocol.methods:
        fixed = ", ".join(f"{k} = {v}" for k, v in m.settings.items())
        values = ", ".join(f"{v:g}" for v in m.values)
        lrs = "as tuned" if m.axis == "lr" else ", ".join(f"{lr:g}" for lr in m.lrs)
        lines.append(f"| {m.label} | {fixed} | {m.axis}: {values} | {lrs} | {m.wave} |")
    lines += ["", "| part | change | to | tasks | seeds | order |", "|---|---|---|---|---|---|"]
    for v in protocol.variations:
        turned = [f"{k} = `{x}`" for k, x in v.settings.items()]
        turned += [f"coef × {v.factor:g}"] if v.factor != 1 else []
        what = ", ".join(turned).replace("|", "\\|")
        seeds = ", ".join(map(str, v.seeds))
        tasks = ", ".join(v.tasks)
        lines.append(f"| {v.part} | {v.group}: {what} | {v.of} | {tasks} | {seeds} | {v.wave} |")
    lines += ["", "| part | runs | core-hours at 1 s a step |", "|---|---|---|"]
    for part in PARTS:
        jobs = protocol.jobs(parts=(part,))
        lines.append(f"| {part} | {len(jobs)} | {hours(jobs):.1f} |")
    core = [job for job in protocol.jobs() if job.wave == 0]
    lines.append(f"| of these, order 0 | {len(core)} | {hours(core):.1f} |")
    lines.append(f"| all | {len(protocol.jobs())} | {hours(protocol.jobs()):.1f} |")
    tuning, result = (
        ", ".join(map(str, seeds)) for seeds in (protocol.tuning_seeds, protocol.result_seeds)
    )
    steps = ", ".join(f"{task} {count}" for task, count in protocol.steps.items())
    told = (
        f"Tuning seeds {tuning}; result seeds {result}. Steps: {steps}. First stage: every point, "
        f"seed {protocol.tuning_seeds[0]}. Second stage: the best {protocol.kept}, the other seeds."
    )
    lines += ["", told]
    return "\n".join(lines) + "\n"
