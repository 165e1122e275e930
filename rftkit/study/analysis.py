"""Numbers of the study from its records: means, 95% intervals over seeds, paired differences.

Everything works on what is there, and says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rftkit.metrics import bootstrap_ci, edit_ratio, mean, paired_bootstrap
from rftkit.study.methods import DOSES, Method, Variation
from rftkit.study.plan import Protocol, Record, Records
from rftkit.tasks.base import units

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


def cell(rows: Mapping[int, Record], column: Column) -> str:
    """Mean and 95% interval over seeds."""
    values = [v for row in rows.values() if (v := column.read(row)) is not None]
    if not values:
        return "–"
    low, high = bootstrap_ci(values)
    write = column.form.format
    middle = write(column.scale * mean(values))
    return f"{middle} ({write(column.scale * low)} to {write(column.scale * high)})"


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
            ratio = edit_ratio(units(sample["response"]), units(sample["refined"]))
            if ratio > found.get(part, (0.0, sample))[0]:
                found[part] = ratio, sample
    return [sample for _, (_, sample) in sorted(found.items())]


def verdict(protocol: Protocol, task: str, records: Records) -> str:
    """Whether the goal is reached: every paired difference above zero, few degenerate responses."""
    missing = missing_results(protocol, task, records)
    found = differences(protocol, task, records)
    dynamic = results(task, "dynamic", records)
    if missing or not found or not dynamic:
        return f"{task}: not decided, runs are missing."
    lost = [c.label for c in found if c.low <= 0]
    share = mean([float(DEGENERATE.read(row) or 0.0) for row in dynamic.values()])
    if share > DEGENERATE_BAR:
        lost.append(f"degenerate share {share:.1%}, above {DEGENERATE_BAR:.0%}")
    if lost:
        return f"{task}: the goal is missed ({'; '.join(lost)})."
    return f"{task}: the goal is reached (all differences above zero, {share:.1%} degenerate)."


def missing_results(protocol: Protocol, task: str, records: Records) -> list[str]:
    """What a task's result still lacks, a phrase a method."""
    told = []
    for m in protocol.methods:
        there = len(results(task, m.name, records))
        if there < len(protocol.result_seeds):
            told.append(f"{m.label} ({there} of {len(protocol.result_seeds)})")
    return told


def chosen(protocol: Protocol, task: str, method: Method, records: Records) -> str:
    """The tuned settings in words, and whether they lie at the edge of the grid."""
    choice = protocol.choice(task, method.name, records)
    if choice is None:
        return "tuning unfinished"
    value = choice[method.axis]
    told = "" if method.axis == "lr" else f"{_sign(method)} = {value:g}, "
    told += f"lr = {choice['lr']:g}"
    if method.early:
        told += f", stopped at step {choice['steps']}"
    edge = value in (method.values[0], method.values[-1])
    return told + (" (edge of the grid)" if edge else "")


def _sign(method: Method) -> str:
    if method.axis == "kl_target":
        return "target"
    return "β" if method.kind == "kl" else "λ"


# Markdown


def result_table(
    protocol: Protocol, task: str, records: Records, columns: Sequence[Column] = COLUMNS
) -> str:
    """A task's results, a line a method that has any."""
    lines = [_row(["method", "tuned", "seeds", *(c.name for c in columns)])]
    lines.append("|" + "---|" * (3 + len(columns)))
    for m in protocol.methods:
        rows = results(task, m.name, records)
        if rows:
            tuned = chosen(protocol, task, m, records)
            cells = [cell(rows, column) for column in columns]
            lines.append(_row([m.label, tuned, str(len(rows)), *cells]))
    text = "\n".join(lines) + "\n" if len(lines) > 2 else ""
    if missing := missing_results(protocol, task, records):
        text += ("\n" if text else "") + f"Still missing: {', '.join(missing)}.\n"
    return text


def difference_table(protocol: Protocol, task: str, records: Records) -> str:
    """Paired differences in gold reward; "" where no pair is there yet."""
    found = differences(protocol, task, records)
    if not found:
        return ""
    lines = [_row(["difference in gold reward", "mean (95% interval)", "seeds"]), "|---|---|---|"]
    for c in found:
        interval = f"{c.mean:+.2f} ({c.low:+.2f} to {c.high:+.2f})"
        lines.append(_row([c.label, interval, str(c.seeds)]))
    return "\n".join(lines) + "\n"


def variation_table(protocol: Protocol, task: str, part: str, records: Records) -> str:
    """A task's variations of one part; "" where none has run."""
    lines = []
    for v in protocol.variations:
        rows = varied(task, v, records) if v.part == part and task in v.tasks else {}
        if rows:
            label = v.group
            if part == "why":
                label = f"{DOSES[v.group][0]}: {v.dose:g}"
            cells = [cell(rows, column) for column in SHORT]
            lines.append(_row([label, v.of, str(len(rows)), *cells]))
    if not lines:
        return ""
    head = _row(["change", "of", "seeds", *(c.name for c in SHORT)])
    return "\n".join([head, "|" + "---|" * (3 + len(SHORT)), *lines]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
