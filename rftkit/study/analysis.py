"""Numbers of the study from its records: means, 95% intervals over seeds, paired differences.

Everything works on what is there, and says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rftkit.metrics import mean, paired_bootstrap
from rftkit.study.methods import Variation
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
    """What the refiner changed under the dynamic constraint: of each part of the training, the
    sample that it changed most, over all result seeds. Parts without a changed sample are left out.
    """
    found: dict[int, tuple[float, Record]] = {}
    for row in results(task, "dynamic", records).values():
        for sample in row["samples"]:
            part = min(count - 1, count * sample["step"] // row["config"]["steps"])
            ratio = word_edit_ratio(sample["response"], sample["refined"])
            if ratio > found.get(part, (0.0, sample))[0]:
                found[part] = ratio, sample
    return [sample for _, (_, sample) in sorted(found.items())]


class Budget(NamedTuple):
    """A cost that a run's gold reward is held against, at the end and at each evaluation."""

    name: str
    end: Callable[[Record], float | None]
    key: str  # of the curve


BUDGETS = (
    Budget("KL from the reference (nats)", lambda r: r["final"]["kl"], "kl"),
    Budget("degenerate share", lambda r: r["final"]["degenerate"], "degenerate"),
    Budget("tokens generated", lambda r: r["generated"], "generated"),
)


class Within(NamedTuple):
    """What rivals reach at no more than the dynamic constraint's cost, and how far it is above.

    cost, rival: means over seeds. best: the method that reached the most. low, high: of the paired
    difference, dynamic − rival.
    """

    budget: str
    cost: float
    rival: float
    best: str
    mean: float
    low: float
    high: float


def frontier(protocol: Protocol, task: str, records: Records) -> list[Within]:
    """Whether the dynamic constraint lies above what no constraint and KL can reach at its cost.

    For each of its seeds the highest gold reward among *all* evaluations of *all* their runs,
    tuning included, that cost no more. A maximum over so many favours the rivals.
    """
    dynamic = results(task, "dynamic", records)
    rivals = [
        (method.label, record)
        for method in protocol.methods
        if method.kind in ("none", "kl")
        for key, record in records.items()
        if key.startswith((f"{task}/{method.name}/first", f"{task}/{method.name}/second",
                           f"{task}/{method.name}/result"))
    ]  # fmt: skip
    found = []
    for budget in BUDGETS:
        points = [
            (cost, gold, label)
            for label, record in rivals
            for cost, gold in zip(
                record["curve"][budget.key], record["curve"]["gold_reward"], strict=True
            )
            if cost is not None and gold is not None
        ]
        ours, theirs, costs, names = [], [], [], []
        for row in dynamic.values():
            cost = budget.end(row)
            inside = [(g, label) for c, g, label in points if cost is not None and c <= cost]
            if inside and cost is not None:
                gold, label = max(inside)
                ours.append(float(row["final"]["gold_reward"]))
                theirs.append(gold)
                costs.append(cost)
                names.append(label)
        if ours:
            middle, (low, high) = paired_bootstrap(ours, theirs)
            best = max(zip(theirs, names, strict=True))[1]
            found.append(Within(budget.name, mean(costs), mean(theirs), best, middle, low, high))
    return found


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
