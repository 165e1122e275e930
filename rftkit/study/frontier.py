"""Does the dynamic constraint move the frontier of gold reward against cost, or walk along it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rftkit.metrics import mean, paired_bootstrap
from rftkit.study.analysis import results
from rftkit.study.methods import Method
from rftkit.study.plan import Protocol, Record, Records


class Budget(NamedTuple):
    """A cost that gold reward is held against: its name, and where a record's curve has it."""

    name: str
    key: str


BUDGETS = (
    Budget("KL from the reference (nats)", "kl"),
    Budget("degenerate share", "degenerate"),
    Budget("tokens generated", "generated"),
)


class Rival(NamedTuple):
    """An evaluation of a rival's results: mean gold reward over seeds, and dynamic minus that."""

    label: str
    step: int
    gold: float
    difference: float  # paired
    low: float
    high: float


class Within(NamedTuple):
    """What rivals reach at no more than the dynamic constraint's cost, their seeds' mean.

    cost: of the dynamic constraint at the end. best: None where rivals never come so low.
    luckiest: the highest single evaluation of any of their runs, tuning included, at that cost.
    """

    budget: str
    cost: float
    best: Rival | None
    luckiest: float | None


def frontier(protocol: Protocol, task: str, records: Records) -> list[Within]:
    """Whether the dynamic constraint lies above what no constraint and KL reach at its cost."""
    dynamic = results(task, "dynamic", records)
    rivals = [m for m in protocol.methods if m.kind in ("none", "kl")]
    found = []
    for budget in BUDGETS if dynamic else ():
        costs = [_at(row, budget.key)[row["final"]["step"]] for row in dynamic.values()]
        cost = mean(c for c in costs if c is not None)
        points = [p for m in rivals for p in _points(task, m, budget.key, records, set(dynamic))]
        single = [
            gold
            for m in rivals
            for row in _all_runs(task, m, records)
            for c, gold in zip(row["curve"][budget.key], row["curve"]["gold_reward"], strict=True)
            if c is not None and gold is not None and c <= cost
        ]
        best = _best([p for p in points if p.cost <= cost], dynamic)
        found.append(Within(budget.name, cost, best, max(single, default=None)))
    return found


def _best(points: Sequence[_Point], dynamic: Mapping[int, Record]) -> Rival | None:
    if not points:
        return None
    best = max(points, key=lambda p: mean(p.golds.values()))
    ours = [float(dynamic[seed]["final"]["gold_reward"]) for seed in best.golds]
    middle, (low, high) = paired_bootstrap(ours, list(best.golds.values()))
    return Rival(best.label, best.step, mean(best.golds.values()), middle, low, high)


class _Point(NamedTuple):
    label: str
    step: int
    cost: float  # mean over seeds
    golds: dict[int, float]  # by seed


def _points(task: str, method: Method, key: str, records: Records, seeds: set[int]) -> list[_Point]:
    """A method's results at each evaluation: mean cost, and gold reward by seed."""
    rows = {s: row for s, row in results(task, method.name, records).items() if s in seeds}
    found = []
    for step in next(iter(rows.values()))["curve"]["step"] if rows else ():
        costs = [_at(row, key).get(step) for row in rows.values()]
        golds = {s: _at(row, "gold_reward").get(step) for s, row in rows.items()}
        known = {s: gold for s, gold in golds.items() if gold is not None}
        if None not in costs and len(known) == len(rows):
            cost = mean(c for c in costs if c is not None)
            found.append(_Point(method.label, step, cost, known))
    return found


def _at(record: Record, key: str) -> dict[int, float | None]:
    """A curve by step."""
    return dict(zip(record["curve"]["step"], record["curve"][key], strict=True))


def _all_runs(task: str, method: Method, records: Records) -> list[Record]:
    stages = tuple(f"{task}/{method.name}/{stage}" for stage in ("first", "second", "result"))
    return [record for key, record in records.items() if key.startswith(stages)]
