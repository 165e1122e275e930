"""README's tables and the recorded runs' figures: `python -m rftkit.report` rewrites them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rftkit.paths import DATA
from rftkit.plots import LABELS, curves, refining_cost, save
from rftkit.runs import RunFolder
from rftkit.study.command import study
from rftkit.study.report import readme_block

_BLOCK = re.compile(
    r"(<!-- (?P<kind>results|study): (?P<task>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def markdown(summary: dict[str, Any]) -> str:
    """One summary as a Markdown table; means over seeds, with the lowest and highest seed."""
    seeds, methods = len(summary["seeds"]), summary["methods"]
    gamed = all("gamed" in method for method in methods.values())
    heads = ["constraint", "gold reward, end", "best on the way", "task − gold", "degenerate"]
    heads += [*(["gamed"] if gamed else []), "KL (nats)", "s/step"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, method in methods.items():
        gold = method["gold_reward"]
        spread = (
            f" ({min(gold['per_seed']):.2f} to {max(gold['per_seed']):.2f})" if seeds > 1 else ""
        )
        cells = [
            _name(name, method["coef"]),
            f"{gold['mean']:.2f}{spread}",
            f"{method['best_gold_reward']['mean']:.2f}",
            f"{method['task_reward']['mean'] - gold['mean']:.2f}",
            f"{method['degenerate']['mean']:.1%}",
            *([f"{method['gamed']['mean']:.1%}"] if gamed else []),
            f"{method['kl']['mean']:.1f}",
            f"{method['seconds_per_step']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    start = summary["methods"]["none"]["start_gold_reward"]
    lines.append("")
    lines.append(
        f"Gold maximum {summary['gold_max']:g}, start {start:.2f}; {summary['steps']} steps, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; on held-out prompts."
    )
    return "\n".join(lines) + "\n"


def fill(text: str) -> str:
    """`text` with every block rewritten: results from data/runs/<task>/summary.json, study from
    the records in data/runs/study."""

    def block(found: re.Match[str]) -> str:
        if found["kind"] == "study":
            return found[1] + readme_block(found["task"], DATA / "runs" / "study") + found[4]
        place = DATA / "runs" / found["task"] / "summary.json"
        return found[1] + markdown(json.loads(place.read_text(encoding="utf-8"))) + found[4]

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
    readme = Path("README.md")
    readme.write_text(fill(readme.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
