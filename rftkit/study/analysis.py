"""Numbers of the study from its records: means, 95% intervals over seeds, paired differences.

Everything works on what is there, and says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rftkit.metrics import mean, paired_bootstrap
from rftkit.study.methods import DOSES, Method, Variation
from rftkit.study.plan import Protocol, Record, Records
from rftkit.words import word_edit_ratio

DEGENERATE_BAR = 0.03  # the goal for the dynamic constraint
KINDS = ("none", "kl", "dynamic", "control")  # of methods, in the order of tables and figures
TUNED = "as tuned"  # what the settings of "limits" stand beside


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


def grouped(protocol: Protocol) -> list[Method]:
    """The methods, those of a kind together: no constraint, KL, dynamic, controls."""
    return sorted(protocol.methods, key=lambda m: KINDS.index(m.kind))


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


def tasks_with_results(protocol: Protocol, records: Records) -> list[str]:
    """The tasks on which the dynamic constraint has any result."""
    return [task for task in protocol.tasks if results(task, "dynamic", records)]


def varied(task: str, variation: Variation, records: Records) -> dict[int, Record]:
    """A variation's runs by seed."""
    return runs(records, f"{task}/{variation.slug}/{variation.part}")


def ran(
    protocol: Protocol, task: str, part: str, records: Records
) -> Iterator[tuple[Variation, dict[int, Record]]]:
    """A task's variations of one part that have any run, with their runs by seed."""
    for v in protocol.variations:
        if v.part == part and task in v.tasks and (rows := varied(task, v, records)):
            yield v, rows


_Other = tuple[str, str, Callable[[Record], float | None]]  # label, method, what is read of it


class Compared(NamedTuple):
    """One paired difference: over common seeds, in gold reward."""

    label: str
    mean: float
    low: float
    high: float
    seeds: int


def differences(protocol: Protocol, task: str, records: Records) -> list[Compared]:
    """Gold reward of the dynamic constraint minus that of what it has to beat, seed by seed."""
    kl = protocol.best_kl(task, records, complete=False)
    gold = GOLD.read
    rivals: list[_Other] = [
        ("no constraint", "none", gold),
        ("no constraint at its best step, known afterwards", "none", best_on_the_way),
        ("no constraint, stopped early", "none-early", gold),
    ]
    if kl is not None:
        form = protocol.method(kl).label.removeprefix("KL, ")
        rivals.insert(0, (f"best KL ({form})", kl, gold))
    return _differences(task, rivals, records)


def differences_from_controls(protocol: Protocol, task: str, records: Records) -> list[Compared]:
    """The same from the ablation and the controls: what each of them lacks."""
    others = [m for m in protocol.methods if m.kind in ("dynamic", "control")]
    rivals: list[_Other] = [(m.label, m.name, GOLD.read) for m in others if m.name != "dynamic"]
    return _differences(task, rivals, records)


def _differences(task: str, rivals: Sequence[_Other], records: Records) -> list[Compared]:
    dynamic, found = results(task, "dynamic", records), []
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


def by_setting(
    protocol: Protocol, task: str, records: Records
) -> dict[str, dict[str, dict[int, Record]]]:
    """Runs of "limits" by setting, constraint and seed; settings without any are left out."""
    found: dict[str, dict[str, dict[int, Record]]] = {}
    for v, rows in ran(protocol, task, "limits", records):
        for seed, row in rows.items():
            methods = found.setdefault(v.group, {})
            methods.setdefault(row["config"]["constraint"], {})[seed] = row
    return found


def as_tuned(protocol: Protocol, task: str, records: Records) -> dict[str, dict[int, Record]]:
    """Result runs of no constraint, of the best KL and of the dynamic one, as far as they ran.

    Of a control too, by its name, which is its constraint's, where one of "limits" has it.
    """
    names = {"none": "none", "kl": protocol.best_kl(task, records, False), "dynamic": "dynamic"}
    controls = {m.name for m in protocol.methods if m.kind == "control"}
    limits = [v.of for v in protocol.variations if v.part == "limits" and task in v.tasks]
    names |= {name: name for name in limits if name in controls}
    found = {c: results(task, name, records) for c, name in names.items() if name}
    return {constraint: rows for constraint, rows in found.items() if rows}


def by_dose(
    protocol: Protocol, task: str, records: Records
) -> dict[str, dict[float, dict[int, Record]]]:
    """Runs of "why" by group, dose and seed, the tuned method's own among the doses.

    Groups and doses without any run are left out.
    """
    found: dict[str, dict[float, dict[int, Record]]] = {}
    for v, rows in ran(protocol, task, "why", records):
        found.setdefault(v.group, {})[v.dose] = rows
    tuned = results(task, "dynamic", records)
    for group, doses in found.items():
        if tuned:
            doses[DOSES[group][1]] = tuned
    return found


def by_refiner(
    protocol: Protocol, records: Records, measured: Sequence[Record]
) -> Iterator[tuple[Record, Record]]:
    """Each refiner or control that `rftkit.study.refiners` measured, with each run of it."""
    variations = {v.name: v for v in protocol.variations}
    for row in measured:
        task, name, seed = row["task"], row["refiner"], row["seed"]
        if name in variations:
            rows = varied(task, variations[name], records)
        else:
            rows = results(task, "dynamic" if name == TUNED else name, records)
        yield from ((row, run) for at, run in rows.items() if seed in (None, at))


def endings(protocol: Protocol, task: str, records: Records) -> list[tuple[str, Record]]:
    """What each run of "limits" under the dynamic constraint had come to, with its setting.

    Of the samples of its last third the one with the lowest gold reward, the latest of equals.
    """
    found = []
    for setting, methods in by_setting(protocol, task, records).items():
        for row in methods.get("dynamic", {}).values():
            late = [s for s in row["samples"] if 3 * s["step"] >= 2 * row["config"]["steps"]]
            if late:
                worst = min(late, key=lambda s: (s["gold_reward"], -s["step"]))
                found.append((setting, worst))
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
