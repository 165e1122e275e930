"""Numbers of the study from its records: means, 95% intervals over seeds, paired differences.

Everything works on what is there, and says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rftkit.metrics import mean, paired_bootstrap
from rftkit.study.methods import Method, Variation
from rftkit.study.plan import Protocol, Record, Records
from rftkit.words import word_edit_ratio

DEGENERATE_BAR = 0.03  # the goal for the dynamic constraint


class Column(NamedTuple):
    """One number of a run: its name, how it is read, and how it is written."""

    name: str
    read: Callable[[Record], float | None]
    form: str = "{:.2f}"
    scale: float = 1.0


def best_on_the_way(record: Record) -> float:
    """The highest gold reward of all evaluations: known only afterwards."""
    return float(max(gold for gold in record["curve"]["gold_reward"] if gold is not None))


COLUMNS = (
    Column("gold reward", lambda r: r["final"]["gold_reward"]),
    Column("best on the way", best_on_the_way),
    Column("degenerate", lambda r: r["final"]["degenerate"], "{:.1f}%", 100),
    Column("task − gold", lambda r: r["final"]["heldout_task_reward"] - r["final"]["gold_reward"]),
    Column("KL (nats)", lambda r: r["final"]["kl"], "{:.1f}"),
    Column("entropy (nats)", lambda r: r["final"]["entropy"]),
    Column("length (tokens)", lambda r: r["final"]["length"], "{:.1f}"),
    Column("sampled (10³ tokens)", lambda r: r["tokens"], "{:.0f}", 1e-3),
    Column("generated (10³ tokens)", lambda r: r["generated"], "{:.0f}", 1e-3),
    Column("seconds", lambda r: r["seconds"], "{:.0f}"),
)
GOLD, DEGENERATE = COLUMNS[0], COLUMNS[2]
SHORT = tuple(c for c in COLUMNS if c.name not in ("entropy (nats)", "length (tokens)"))


def runs(records: Records, prefix: str) -> dict[int, Record]:
    """Records by seed, of the jobs whose key begins so."""
    return {
        int(key.rpartition("seed")[2]): record
        for key, record in records.items()
        if key.startswith(prefix + "/seed")
    }


def results(task: str, method: str, records: Records) -> dict[int, Record]:
    """A method's result runs by seed."""
    return runs(records, f"{task}/{method}/result")


def varied(task: str, variation: Variation, records: Records) -> dict[int, Record]:
    """A variation's runs by seed."""
    return runs(records, f"{task}/{variation.slug}/{variation.part}")


class Compared(NamedTuple):
    """One paired difference: over common seeds, in gold reward."""

    label: str
    mean: float
    low: float
    high: float
    seeds: int


def differences(protocol: Protocol, task: str, records: Records) -> list[Compared]:
    """Gold reward of the dynamic constraint minus that of what it has to beat, seed by seed."""
    dynamic = results(task, "dynamic", records)
    kl = protocol.best_kl(task, records, complete=False)
    gold = GOLD.read
    rivals: list[tuple[str, str, Callable[[Record], float | None]]] = [
        ("no constraint", "none", gold),
        ("no constraint, its best evaluation afterwards", "none", best_on_the_way),
        ("no constraint, stopped early", "none-early", gold),
    ]
    if kl is not None:
        form = protocol.method(kl).label.removeprefix("KL, ")
        rivals.insert(0, (f"best KL ({form})", kl, gold))
    found = []
    for label, name, read in rivals:
        other = results(task, name, records)
        seeds = sorted(set(dynamic) & set(other))
        if seeds:
            ours = [dynamic[s]["final"]["gold_reward"] for s in seeds]
            theirs = [float(read(other[s]) or 0.0) for s in seeds]
            middle, (low, high) = paired_bootstrap(ours, theirs)
            found.append(Compared(f"dynamic − {label}", middle, low, high, len(seeds)))
    return found


def telling(task: str, records: Records, count: int = 10) -> list[Record]:
    """What the refiner changed under the dynamic constraint, over all result seeds.

    Of each part of the training the sample that it changed most; where a part has none, more of
    the others. In the order of the steps, no response twice.
    """
    changed: dict[str, tuple[float, Record]] = {}
    for row in results(task, "dynamic", records).values():
        for sample in row["samples"]:
            ratio = word_edit_ratio(sample["response"], sample["refined"])
            if ratio > 0:
                part = count * sample["step"] // row["config"]["steps"]
                changed[sample["response"]] = ratio, {**sample, "part": min(part, count - 1)}
    ranked = [sample for _, sample in sorted(changed.values(), key=lambda pair: -pair[0])]
    first = list({sample["part"]: sample for sample in reversed(ranked)}.values())
    rest = [sample for sample in ranked if sample not in first]
    return sorted([*first, *rest][:count], key=lambda sample: sample["step"])


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


def verdict(protocol: Protocol, task: str, records: Records) -> str:
    """Whether the goal is reached: every paired difference above zero, few degenerate responses.

    Decided once every KL is tuned and the dynamic constraint and its rivals have all their seeds;
    before the other KLs are tuned, it says how matters stand.
    """
    best = protocol.best_kl(task, records, complete=False)
    names = ("dynamic", best, "none", "none-early")
    seeds = len(protocol.result_seeds)
    if any(name is None or len(results(task, name, records)) < seeds for name in names):
        return f"{task}: not decided, runs are missing."
    whole = protocol.best_kl(task, records) is not None
    state = "the goal is" if whole else "so far, not all forms of KL being tuned, the goal is"
    lost = [c.label for c in differences(protocol, task, records) if c.low <= 0]
    dynamic = results(task, "dynamic", records)
    share = mean([float(DEGENERATE.read(row) or 0.0) for row in dynamic.values()])
    if share > DEGENERATE_BAR:
        lost.append(f"degenerate share {share:.1%}, above {DEGENERATE_BAR:.0%}")
    if lost:
        return f"{task}: {state} missed ({'; '.join(lost)})."
    return f"{task}: {state} reached (all differences above zero, {share:.1%} degenerate)."


def missing_results(protocol: Protocol, task: str, records: Records) -> list[str]:
    """What a task's result still lacks, a phrase a method."""
    told = []
    for m in protocol.methods:
        there = len(results(task, m.name, records))
        if there < len(protocol.result_seeds):
            told.append(f"{m.label} ({there} of {len(protocol.result_seeds)})")
    return told
