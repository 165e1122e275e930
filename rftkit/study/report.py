"""The study's report: tables in Markdown and figures, from the records alone, complete or not."""

from __future__ import annotations

import json
from pathlib import Path

from rftkit.diff import to_html
from rftkit.files import write_text
from rftkit.plots import save
from rftkit.study.analysis import endings, results, tasks_with_results, telling, verdict
from rftkit.study.dose_figures import doses, limits, refiners
from rftkit.study.figures import frontiers, overview, why
from rftkit.study.plan import PROTOCOL, Protocol, Record, Records
from rftkit.study.records import RecordFiles, sha256
from rftkit.study.tables import (
    control_table,
    difference_table,
    doses_table,
    frontier_table,
    limits_table,
    missing_line,
    overview_table,
    result_table,
    variation_table,
)
from rftkit.words import word_diff

INTRODUCTION = """\
Written by `rftkit study --report` from the records beside it; the protocol is
`data/runs/PROTOCOL.md`. A number is the mean over seeds, in brackets its 95% bootstrap interval;
differences are paired by seed. "Best on the way" is the highest of a run's evaluations, known only
afterwards. Seconds leave evaluations out."""
CHANGED = """\
Under the dynamic constraint, over all seeds: of each tenth of the training the recorded response
that it changed most, and more where a tenth has none. Struck out what it deleted, underlined what
it wrote."""
FRONTIER = """\
The rivals are no constraint and every KL. Of their results the evaluation with the highest mean
gold reward among those that cost no more than the dynamic constraint does at its end: knowing the
best step afterwards is an advantage that it does not get. The last column is the highest single
evaluation of any rival's run, any setting of the tuning included: a maximum over hundreds, which
chance flatters, and which no other seed needs to repeat."""
CONTROLS = """\
The dynamic constraint minus what lacks a part of it: SFT on changed responses only; SFT on the
response itself (identity), on another response of the reference (fresh), or on the response with as
many edits, at random (random edit)."""
ENDINGS = """\
What these runs had come to: of each seed under the dynamic constraint, among the responses
recorded in its last third, the one with the lowest gold reward, below its prompt. Struck out what
its refiner deleted, underlined what it wrote."""
DOSED = """\
The tuned dynamic constraint with one thing changed. A row as tuned has all result seeds, the others
the first three."""
ENOUGH = """\
Each mark is a policy: what its refiner does to drafts for held-out prompts (`refiners.json`), and
the gold reward that it led to. The refiner is the tuned one, one stopped early, one with noise on
its weights, or a control in the refiner's place."""
LIMITS = """\
Settings made against the dynamic constraint, beside the tuned methods. A grey bar is the gold
maximum of the task that the setting trains on. Coefficient and learning rate are those that tuning
chose for the task itself."""
BLOCKS = {"all": overview_table, "doses": doses_table, "limits": limits_table}  # of pages


def write(protocol: Protocol, records: Records, folder: Path) -> str:
    """Write `folder`/REPORT.md and its figures; return what was written, and what is missing."""
    written = [folder / "REPORT.md"]
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    if tasks_with_results(protocol, records):
        figures["methods"] = overview(protocol, records)
    for task in protocol.tasks:
        if any(key.startswith(f"{task}/") for key in records):
            figures[f"frontiers-{task}"] = frontiers(protocol, task, records)
        if results(task, "dynamic", records):
            figures[f"why-{task}"] = why(task, records)
    if _any("why", records):
        figures["doses"] = doses(protocol, records)
    measured = _measured(folder)
    if measured and _any("why", records):
        figures["refiners"] = refiners(protocol, records, measured)
    if _any("limits", records):
        figures["limits"] = limits(protocol, records)
    for name, figure in figures.items():
        save(folder / f"{name}.png", figure)
        written.append(folder / f"{name}.png")
    write_text(folder / "REPORT.md", text(protocol, records, "refiners" in figures))
    verdicts = [verdict(protocol, task, records) for task in protocol.tasks]
    return "\n".join([*verdicts, "", *(f"written: {path}" for path in written)])


def _measured(folder: Path) -> list[Record]:
    """What refiners do to drafts, where that was measured (`rftkit.study.refiners`)."""
    path = folder / "refiners.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def text(protocol: Protocol, records: Records, refiners_drawn: bool = False) -> str:
    """The report in Markdown."""
    total = len(protocol.jobs())
    lines = [
        "# Report of the study",
        "",
        INTRODUCTION,
        "",
        f"{len(records)} of {total} runs are recorded.",
        "",
        *(f"- {verdict(protocol, task, records)}" for task in protocol.tasks),
    ]
    if tasks_with_results(protocol, records):
        lines += ["", "![Every method at a glance](methods.png)"]
    for task in protocol.tasks:
        lines += ["", f"## {task}", "", task_text(protocol, task, records).rstrip("\n")]
        if results(task, "dynamic", records):
            lines += ["", f"![Frontiers of {task}](frontiers-{task}.png)"]
            lines += ["", f"![Why, on {task}](why-{task}.png)"]
        if moved := frontier_table(protocol, task, records):
            lines += ["", "### Does it move the frontier, or walk along it?", "", FRONTIER]
            lines += ["", moved.rstrip("\n")]
        if isolated := control_table(protocol, task, records):
            lines += ["", "### What isolates the idea", "", CONTROLS, "", isolated.rstrip("\n")]
        if changed := telling(task, records):
            lines += ["", "### What the refiner changed", "", CHANGED, "", *map(_diff, changed)]
        for part, title in (("why", "Why"), ("limits", "Where it fails")):
            if table := variation_table(protocol, task, part, records):
                lines += ["", f"### {title}", "", table.rstrip("\n")]
        if ended := endings(protocol, task, records):
            lines += ["", ENDINGS, "", *map(_ending, ended)]
    if _any("why", records):
        lines += ["", "## How much of it is needed", "", DOSED, ""]
        lines += [doses_table(protocol, records), "![Gold reward by dose](doses.png)"]
    if refiners_drawn:
        lines += ["", "## Which refiner is good enough", "", ENOUGH, ""]
        lines.append("![Gold reward over what a refiner keeps and repairs](refiners.png)")
    if _any("limits", records):
        lines += ["", "## Where it should fail", "", LIMITS, ""]
        lines.append("![Gold reward and degenerate share where it should fail](limits.png)")
    return "\n".join(lines) + "\n"


def _any(part: str, records: Records) -> bool:
    return any(f"/{part}/" in key for key in records)


def _ending(found: tuple[str, Record]) -> str:
    """A setting's sample: the prompt, and the response with the refiner's edits in it."""
    setting, sample = found
    prompt = to_html([("equal", sample["prompt"])])
    return f"<pre>{setting}, step {sample['step']}\n{prompt}\n{_edits(sample)}</pre>"


def _diff(sample: Record) -> str:
    """A sample with the refiner's edits in it, as HTML that Markdown leaves alone."""
    return f"<pre>step {sample['step']}\n{_edits(sample)}</pre>"


def _edits(sample: Record) -> str:
    return to_html(word_diff(sample["response"], sample["refined"]))


def task_text(protocol: Protocol, task: str, records: Records) -> str:
    """A task's results and paired differences."""
    makers = (result_table, missing_line, difference_table)
    return "\n".join(part for make in makers if (part := make(protocol, task, records)))


def page_table(name: str, folder: Path, protocol: Protocol = PROTOCOL) -> str:
    """A table for a page, of `BLOCKS`, from the records in `folder`."""
    model = sha256(str(protocol.common.get("model", "tiny")))
    return BLOCKS[name](protocol, RecordFiles(folder, protocol.jobs(), model).read())
