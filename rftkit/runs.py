"""Run folders: config, metrics, samples and checkpoint of one run, readable at any moment.

metrics.jsonl and samples.jsonl grow by whole lines; the checkpoint is swapped in whole. After an
interruption the records are cut back to the checkpoint, and the run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.files import append_line, find_folder, writing
from rftkit.files import write_text as write_text
from rftkit.guard import sole_writer

FORMAT = 1


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoint = path / "checkpoint"

    @classmethod
    def create(cls, path: Path, config: RunConfig, resume: bool = False) -> RunFolder:
        """Make the folder, or take up the run in it, also for more steps than it was begun with.

        Raises UserError where a run has begun there and `resume` is False, where its other
        settings or its data differ, or where a part of one lies there without its settings.
        """
        run = cls(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            there = (path / "config.json").exists()
        if not there:
            if run._has_records():
                raise UserError(
                    f"{path}: holds metrics or a checkpoint but no config.json; restore it, or "
                    "choose another --out"
                )
            run._write(config)
        elif run._left_over():
            with run.alone():
                run.cut(0)  # samples of a first step that broke off
                run._write(config)
        elif not resume:
            raise UserError(f"{path}: holds a run already; add --resume or choose another --out")
        else:
            run._take_up(config)
        return run

    def _write(self, config: RunConfig) -> None:
        record = {"format": FORMAT, **_data_sha256(config), **config.to_dict()}
        write_text(self.path / "config.json", json.dumps(record, indent=1) + "\n")

    @property
    def begun(self) -> bool:
        """Whether a run is here that can be taken up."""
        return (self.path / "config.json").exists() and not self._left_over()

    def _left_over(self) -> bool:
        """Whether this is a run without any step: what a first try leaves that failed."""
        if self._has_records():
            return False
        try:
            self.config()
        except UserError:  # something else, which is not ours to overwrite
            return False
        return True

    def _has_records(self) -> bool:
        metrics = self.path / "metrics.jsonl"
        return metrics.exists() or find_folder(self.checkpoint) is not None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process may train in this folder; see `sole_writer`.

        The lock has a file of its own, for config.json is replaced while it is held.
        """
        lock = self.path / "run.lock"
        with writing(lock):
            lock.touch()
        with sole_writer(lock):
            yield

    def config(self) -> RunConfig:
        """The run's settings. Raises UserError where config.json is missing or broken."""
        return self._stored()[0]

    def _stored(self) -> tuple[RunConfig, str]:
        """The settings, and the sha256 of the data file that the run began with ("" = none)."""
        place = self.path / "config.json"
        try:
            record = json.loads(place.read_text(encoding="utf-8"))
            version, data = record.pop("format"), record.pop("data_sha256", "")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{place}: not a run's config; is {self.path} a run folder?") from None
        if version != FORMAT:
            raise UserError(f"{place}: format {version}, but this version of rftkit reads {FORMAT}")
        try:
            return RunConfig.from_dict(record), data
        except UserError as error:
            raise UserError(f"{place}: {error}") from None

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one step's metrics; not-a-number becomes null."""
        _append(self.path / "metrics.jsonl", metrics)

    def sample(self, row: Mapping[str, Any]) -> None:
        """Append one response with its refined version and scores."""
        _append(self.path / "samples.jsonl", row)

    def metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl."""
        return _read(self.path / "metrics.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        """All complete lines of samples.jsonl."""
        return _read(self.path / "samples.jsonl")

    def should_have_saved(self) -> bool:
        """Whether the records say that a checkpoint was due and written."""
        every = self.config().save_every
        before = self.metrics()[:-1]  # the last line may be from just before its checkpoint
        return any((m["step"] + 1) % every == 0 and not m.get("skipped") for m in before)

    def cut(self, step: int) -> None:
        """Drop records of `step` and later: what was written after the checkpoint.

        Raises UserError where one of the steps before is missing.
        """
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            rows = [row for row in _read(path) if row["step"] < step]
            if name == "metrics.jsonl" and [row["step"] for row in rows] != list(range(step)):
                raise UserError(
                    f"{path}: not all steps up to the checkpoint's, {step}, are in it; "
                    "restore the file or choose another --out"
                )
            if path.exists():
                write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def _take_up(self, config: RunConfig) -> None:
        stored, data = self._stored()
        mine, theirs = config.to_dict(), stored.to_dict()
        changed = [key for key, value in mine.items() if theirs[key] != value]
        if data and "data" not in changed and _data_sha256(config).get("data_sha256") != data:
            raise UserError(
                f"{config.data}: is not the file that the run in {self.path} began with; restore "
                "it, or choose another --out"
            )
        if changed == ["steps"] and config.steps > theirs["steps"]:
            with self.alone():
                self._write(config)
        elif changed:
            raise UserError(
                f"{self.path}: holds a run with another {', '.join(changed)}; "
                "choose another --out or the same settings"
            )


def _data_sha256(config: RunConfig) -> dict[str, str]:
    """What a run with data of the user's own keeps of it: nothing else tells a changed file."""
    path = Path(config.data)
    if not (config.data and path.is_file()):
        return {}
    with path.open("rb") as file:
        return {"data_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    clean = {key: _finite(value) for key, value in row.items()}
    try:
        line = json.dumps(clean)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a metric is neither number nor text ({error})") from None
    append_line(path, line)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is half a line
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            int(rows[-1]["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(
                f"{path}:{number}: not a record with a step; restore the file or start a new run"
            ) from None
    return rows
