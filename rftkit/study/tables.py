"""The study's numbers as Markdown tables, and a method's tuned settings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rftkit.metrics import bootstrap_ci, mean
from rftkit.plots import LABELS
from rftkit.study.analysis import (
    COLUMNS,
    DEGENERATE,
    GOLD,
    SHORT,
    TUNED,
    Column,
    Compared,
    as_tuned,
    by_dose,
    by_setting,
    differences,
    differences_from_controls,
    grouped,
    missing_results,
    ran,
    results,
    tasks_with_results,
)
from rftkit.study.frontier import Rival, frontier
from rftkit.study.methods import DOSES, Method
from rftkit.study.plan import Protocol, Record, Records
from rftkit.tasks import load_task


def cell(rows: Mapping[int, Record], column: Column) -> str:
    """Mean and 95% interval over seeds."""
    values = [v for row in rows.values() if (v := column.read(row)) is not None]
    if not values:
        return "–"
    low, high = bootstrap_ci(values)
    write = column.form.format
    middle = write(column.scale * mean(values))
    return f"{middle} ({write(column.scale * low)} to {write(column.scale * high)})"


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
        return "target (nats a token)"
    return "β" if method.kind == "kl" else "λ"


def result_table(protocol: Protocol, task: str, records: Records) -> str:
    """A task's results, a line a method that has any."""
    lines = [_row(["method", "tuned", "seeds", *(c.name for c in COLUMNS)])]
    lines.append("|" + "---|" * (3 + len(COLUMNS)))
    for m in grouped(protocol):
        rows = results(task, m.name, records)
        if rows:
            tuned = chosen(protocol, task, m, records)
            cells = [cell(rows, column) for column in COLUMNS]
            lines.append(_row([m.label, tuned, str(len(rows)), *cells]))
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def overview_table(protocol: Protocol, records: Records) -> str:
    """Gold reward, degenerate share and paired differences, tasks side by side if they have any."""
    tasks = tasks_with_results(protocol, records)
    heads = [f"{t} (maximum {load_task(t).gold_max:g})" for t in tasks]
    lines = [_row(["gold reward, degenerate share", *heads]), "|" + "---|" * (1 + len(tasks))]
    for m in grouped(protocol):
        found = [results(t, m.name, records) for t in tasks]
        if any(found):
            lines.append(_row([m.label, *(_gold_and_share(rows) for rows in found)]))
    compared: list[dict[str, str]] = []  # cells by label; which KL is best is told in its cell
    for task in tasks:
        found_here = {}
        for c in differences(protocol, task, records):
            label, _, form = c.label.rstrip(")").partition(" (")
            found_here[label] = _interval(c) + (f" over {form}" if form else "")
        compared.append(found_here)
    for label in dict.fromkeys(label for cells in compared for label in cells):
        lines.append(_row([label, *(cells.get(label, "–") for cells in compared)]))
    return "\n".join(lines) + "\n"


def limits_table(protocol: Protocol, records: Records) -> str:
    """Gold reward and degenerate share where the dynamic constraint should fail, beside rivals."""
    tasks = tasks_with_results(protocol, records)
    found = [
        {TUNED: as_tuned(protocol, t, records)} | by_setting(protocol, t, records) for t in tasks
    ]
    lines = [_row(["gold reward, degenerate share", *tasks]), "|" + "---|" * (1 + len(tasks))]
    groups = [v.group for v in protocol.variations if v.part == "limits"]
    for group in dict.fromkeys([TUNED, *groups]):
        for constraint in reversed(LABELS):
            rows = [settings.get(group, {}).get(constraint, {}) for settings in found]
            if any(rows):
                cells = map(_gold_and_share, rows)
                lines.append(_row([f"{group}: {LABELS[constraint]}", *cells]))
    return "\n".join(lines) + "\n"


def doses_table(protocol: Protocol, records: Records) -> str:
    """Gold reward and degenerate share by dose of the dynamic constraint, tasks side by side."""
    tasks = tasks_with_results(protocol, records)
    found = [by_dose(protocol, t, records) for t in tasks]
    lines = [_row(["dynamic: gold reward, degenerate share", *tasks])]
    lines.append("|" + "---|" * (1 + len(tasks)))
    lines.append(_row([TUNED, *(_gold_and_share(results(t, "dynamic", records)) for t in tasks)]))
    for group, (title, own) in DOSES.items():
        doses = {dose for groups in found for dose in groups.get(group, {})} - {own}
        for dose in sorted(doses):
            rows = [groups.get(group, {}).get(dose, {}) for groups in found]
            lines.append(_row([f"{title}: {dose:g}", *map(_gold_and_share, rows)]))
    return "\n".join(lines) + "\n"


def _gold_and_share(rows: Mapping[int, Record]) -> str:
    return f"{cell(rows, GOLD)}, {cell(rows, DEGENERATE).partition(' ')[0]}" if rows else "–"


def missing_line(protocol: Protocol, task: str, records: Records) -> str:
    """What a task's result lacks, by method; "" where nothing does."""
    missing = missing_results(protocol, task, records)
    return f"Still missing: {', '.join(missing)}.\n" if missing else ""


def difference_table(protocol: Protocol, task: str, records: Records) -> str:
    """Paired differences in gold reward; "" where no pair is there yet."""
    return _differences(differences(protocol, task, records))


def control_table(protocol: Protocol, task: str, records: Records) -> str:
    """The same from the ablation and the controls."""
    return _differences(differences_from_controls(protocol, task, records))


def _differences(found: Sequence[Compared]) -> str:
    if not found:
        return ""
    lines = [_row(["difference in gold reward", "mean (95% interval)", "seeds"]), "|---|---|---|"]
    for c in found:
        lines.append(_row([c.label, _interval(c), str(c.seeds)]))
    return "\n".join(lines) + "\n"


def _interval(found: Compared) -> str:
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def frontier_table(protocol: Protocol, task: str, records: Records) -> str:
    """Whether the frontier moves, budget by budget; "" where nothing can be compared yet."""
    found = frontier(protocol, task, records)
    if not found:
        return ""
    head = ["at no more", "than", "best of the rivals", "dynamic − that (95%)", "answer"]
    head.append("luckiest evaluation of a rival")
    lines = [_row(head), "|" + "---|" * len(head)]
    for w in found:
        form = ".1%" if "share" in w.budget else ",.0f" if "tokens" in w.budget else ".1f"
        cost = format(w.cost, form)
        rival, interval = "none comes so low", "–"
        if best := w.best:
            rival = f"{best.gold:.2f} ({best.label}, step {best.step})"
            interval = f"{best.difference:+.2f} ({best.low:+.2f} to {best.high:+.2f})"
        lucky = "–" if w.luckiest is None else f"{w.luckiest:.2f}"
        lines.append(_row([w.budget, cost, rival, interval, answer(best), lucky]))
    return "\n".join(lines) + "\n"


def answer(best: Rival | None) -> str:
    """In words, what an interval says about the frontier."""
    if best is None or best.low > 0:
        return "moves it"
    return "walks along it" if best.high >= 0 else "stays below it"


def variation_table(protocol: Protocol, task: str, part: str, records: Records) -> str:
    """A task's variations of one part; "" where none has run."""
    lines = []
    for v, rows in ran(protocol, task, part, records):
        label = f"{DOSES[v.group][0]}: {v.dose:g}" if part == "why" else v.group
        cells = [cell(rows, column) for column in SHORT]
        lines.append(_row([label, v.of, str(len(rows)), *cells]))
    if not lines:
        return ""
    head = _row(["change", "of", "seeds", *(c.name for c in SHORT)])
    return "\n".join([head, "|" + "---|" * (3 + len(SHORT)), *lines]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
