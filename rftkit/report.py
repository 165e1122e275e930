"""The pages' tables and the recorded runs' figures: `python -m rftkit.report` rewrites them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rftkit.paths import DATA
from rftkit.plots import LABELS, curves, refining_cost, save
from rftkit.runs import RunFolder
from rftkit.study.command import study
from rftkit.study.report import page_table

PAGES = ("README.md", "docs/results.md")  # whose blocks are filled
_BLOCK = re.compile(
    r"(<!-- (?P<kind>results|study|bench): (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def markdown(summary: dict[str, Any]) -> str:
    """One summary as a Markdown table; means over seeds, with the lowest and highest seed."""
    seeds = len(summary["seeds"])
    rows = [_cells(name, method) for name, method in summary["methods"].items()]
    lines = ["| " + " | ".join(cells) + " |" for cells in (rows[0], *(r.values() for r in rows))]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    start = summary["methods"]["none"]["start_gold_reward"]
    lines.append("")
    lines.append(
        f"Gold maximum {summary['gold_max']:g}, start {start:.2f}; {summary['steps']} steps, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; on held-out prompts."
    )
    return "\n".join(lines) + "\n"


def _cells(name: str, method: dict[str, Any]) -> dict[str, str]:
    """A method's row, by column."""
    gold = method["gold_reward"]
    low, high = min(gold["per_seed"]), max(gold["per_seed"])
    spread = f" ({low:.2f} to {high:.2f})" if len(gold["per_seed"]) > 1 else ""
    gamed = {"gamed": f"{method['gamed']['mean']:.1%}"} if "gamed" in method else {}
    return {
        "constraint": _name(name, method["coef"]),
        "gold reward, end": f"{gold['mean']:.2f}{spread}",
        "best on the way": f"{method['best_gold_reward']['mean']:.2f}",
        "task − gold": f"{method['task_reward']['mean'] - gold['mean']:.2f}",
        "degenerate": f"{method['degenerate']['mean']:.1%}",
        **gamed,
        "KL (nats)": f"{method['kl']['mean']:.1f}",
        "s/step": f"{method['seconds_per_step']:.2f}",
    }


def bench_markdown(found: dict[str, Any]) -> str:
    """What `rftkit bench --peer trl` measured of KL, of sampling and of memory, as a table."""
    seconds, tokens = found["seconds_per_step"], found["tokens_per_second"]
    work, machine, peaks = found["work"], found["machine"], found["peak_memory_gb"]
    measured = peaks["policy_reference_refiner"]["tensors"]
    rows = [
        ("a step under KL", seconds["kl"], "{:.2f} s"),
        ("TRL's step under KL", seconds["trl"], "{:.2f} s"),
        ("sampled from the dense copy", tokens["dense"], "{:.0f} tokens/s"),
        ("sampled by transformers' `generate`", tokens["generate"], "{:.0f} tokens/s"),
    ]
    lines = ["| | median | lowest | highest |", "|---|---|---|---|"]
    for label, values, unit in rows:
        cells = " | ".join(unit.format(values[key]) for key in ("median", "min", "max"))
        lines.append(f"| {label} | {cells} |")
    lines.append(f"| peak of all tensors | {measured:.1f} GB | | |")
    lines.append(f"| what `rftkit estimate` predicts | {peaks['estimated_tensors']:.1f} GB | | |")
    lines.append("")
    lines.append(
        f"{machine['name']}, torch {machine['torch']}; {work['prompts']} prompts × "
        f"{work['group']} responses of {work['max_new_tokens']} tokens, micro-batches of "
        f"{work['token_budget']} tokens, {found['rounds']} rounds."
    )
    return "\n".join(lines) + "\n"


def fill(text: str) -> str:
    """`text` with every block rewritten: results from data/runs/<name>/summary.json, bench from
    data/runs/<name>.json, study from the records in data/runs/study."""

    def block(found: re.Match[str]) -> str:
        return found[1] + table(found["kind"], found["name"]) + found[4]

    def table(kind: str, name: str) -> str:
        if kind == "study":
            return page_table(name, DATA / "runs" / "study")
        place = DATA / "runs" / (f"{name}.json" if kind == "bench" else f"{name}/summary.json")
        make = bench_markdown if kind == "bench" else markdown
        return make(json.loads(place.read_text(encoding="utf-8")))

    return _BLOCK.sub(block, text)


def draw(folder: Path) -> None:
    """Write the figures of a recorded comparison: curves.png and refining_cost.png."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    runs = {
        name: [RunFolder(folder / f"{name}-seed{seed}") for seed in summary["seeds"]]
        for name in summary["methods"]
    }
    save(folder / "curves.png", curves(runs, summary["task"], summary["gold_max"]))
    if "dynamic" in runs:
        save(folder / "refining_cost.png", refining_cost(runs["dynamic"]))


def _name(name: str, coef: float) -> str:
    label = LABELS.get(name, name)
    if name == "none":
        return label
    return f"{label}, {'β' if name == 'kl' else 'λ'} = {coef:g}"


if __name__ == "__main__":
    for summary in sorted((DATA / "runs").glob("*/summary.json")):
        draw(summary.parent)
    if any((DATA / "runs" / "study").glob("*.jsonl")):
        print(study(Path("out/study"), report=True))
    for page in map(Path, PAGES):
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
