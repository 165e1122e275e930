"""What is kept of a run: one compact JSON line, a file a task and part.

Whole run folders are large and stay where they were made; with these lines alone the study goes on
on another machine. Files are replaced whole and in order, so a kill leaves the old or the new one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from rftkit.errors import UserError
from rftkit.files import write_text, writing
from rftkit.metrics import edit_ratio
from rftkit.paths import model_folder
from rftkit.runs import RunFolder
from rftkit.study.plan import Job, Record

PACKAGES = ("rftkit", "torch", "transformers", "peft", "bitsandbytes")
# Measured at every evaluation, some of the policy's batch of that step.
CURVE = (
    "step", "gold_reward", "heldout_task_reward", "degenerate", "kl", "coef", "edit_ratio",
    "changed", "strength", "pull", "entropy", "length",
)  # fmt: skip
# Of training steps alone: their mean over the last ones describes the end.
SETTLED = ("entropy", "length", "edit_ratio", "changed", "strength", "pull", "grad_norm")
LAST_STEPS = 10
SAMPLES = 10
DIGITS = 5  # significant


def sha256(model: str) -> str:
    """Of a model's weights: records of different models must not be mixed."""
    whole = hashlib.sha256()
    for path in sorted(model_folder(model).glob("*.safetensors")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def condense(job: Job, run: RunFolder, model: str, failed: str = "") -> dict[str, Any]:
    """The record of a finished run, or of one that broke (`failed` says why).

    model: the sha256 of its weights. Raises UserError where the run has no evaluation at its end.
    """
    rows = run.metrics()
    if not rows or (not failed and rows[-1]["step"] != run.config().steps):
        raise UserError(f"{run.path}: is not at its end; the same command goes on with it")
    steps = [row for row in rows if row["seconds"] is not None]
    evaluated = [row for row in rows if row["gold_reward"] is not None]
    generated = _generated(rows, run.config().refine_share)
    curve = {key: [_short(row.get(key)) for row in evaluated] for key in CURVE}
    curve["generated"] = [generated[row["step"]] for row in evaluated]
    return {
        "job": job.key,
        "failed": failed,
        "model": model,
        "config": run.config().to_dict(),
        "versions": versions(),
        "final": {
            key: _short(evaluated[-1].get(key))
            for key in ("step", "gold_reward", "heldout_task_reward", "degenerate", "kl")
        }
        | {key: _mean(steps[-LAST_STEPS:], key) for key in SETTLED},
        "tokens": sum(row["tokens"] or 0 for row in steps),
        "generated": generated[rows[-1]["step"]],
        "seconds": _short(sum(row["seconds"] for row in steps)),
        "curve": curve,
        "samples": [] if job.part == "tuning" else _telling(run.samples()),
    }


def versions() -> dict[str, str]:
    """Of the packages that decide a number, of Python, and the kind of machine."""
    found = {name: version(name) for name in PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def _generated(rows: Sequence[Record], share: float) -> dict[int, int]:
    """Tokens written before each step: of the policy, and of a refiner that writes any."""
    total, before = 0, {}
    for row in rows:
        before[row["step"]] = total
        total += row["tokens"] or 0
        if row.get("refiner_passes"):
            total += round(share * row["tokens"] / row["length"] * row["refined_length"])
    return before


def _telling(samples: Sequence[Record]) -> list[dict[str, Any]]:
    """Of each evaluation the response that the refiner changes most; of these ten, evenly spread.

    Those that it leaves alone are taken only where there are not enough others.
    """
    most: dict[int, dict[str, Any]] = {}
    for sample in samples:
        found = most.get(sample["step"])
        if found is None or _changed(sample) > _changed(found):
            most[sample["step"]] = dict(sample)
    changed, same = ([s for s in most.values() if (_changed(s) > 0) == c] for c in (True, False))
    chosen = _spread(changed, SAMPLES)
    return sorted(chosen + _spread(same, SAMPLES - len(chosen)), key=lambda s: s["step"])


def _changed(sample: Record) -> float:
    return edit_ratio(sample["response"], sample["refined"])


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` of the rows, first and last included, evenly spread."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]


def _mean(rows: Sequence[Record], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return _short(fmean(values)) if values else None


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _lines(path: Path) -> list[str]:
    """Split at line feeds alone: a model's text may hold other characters that end a line."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


class RecordFiles:
    """The records of a study, in files `<task>-<part>.jsonl`."""

    def __init__(self, folder: Path, jobs: Sequence[Job], model: str):
        """jobs: all of the protocol. model: sha256 of the weights that the study is about."""
        self.folder, self.model = folder, model
        self.order = {job.key: job for job in jobs}

    def read(self) -> dict[str, dict[str, Any]]:
        """All records by job. Raises UserError for one that is broken, of no job, or of another
        model."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(_lines(path), 1):
                place = f"{path}:{number}"
                try:
                    record = json.loads(line)
                    key, model = record["job"], record["model"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{place}: not a record; restore the file") from None
                if key not in self.order:
                    raise UserError(f"{place}: {key} is no job of the protocol; delete the line")
                if model != self.model:
                    raise UserError(
                        f"{place}: of another model ({model[:12]}, not {self.model[:12]}); move "
                        "the old records away, or choose another --records"
                    )
                found[key] = record
        return found

    def add(self, record: dict[str, Any]) -> None:
        """Write one record into its file, in the order of the protocol."""
        job = self.order[record["job"]]
        path = self.folder / f"{job.task}-{job.part}.jsonl"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        keyed = {json.loads(line)["job"]: line for line in _lines(path)} if path.exists() else {}
        keyed[job.key] = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        rank = {key: i for i, key in enumerate(self.order)}
        ordered = sorted(keyed, key=rank.__getitem__)
        write_text(path, "".join(keyed[key] + "\n" for key in ordered))
