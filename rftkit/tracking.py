"""Optional trackers beside metrics.jsonl: any that accelerate knows, through its interface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from rftkit.errors import UserError

PROJECT = "rftkit"
_NAMES_RUNS = ("wandb", "trackio")  # a project holds several runs, each with a name


class Trackers:
    """The trackers that `names` lists, comma-separated; none for an empty text."""

    def __init__(self, names: str, folder: Path, config: Mapping[str, Any]):
        """folder: where a tracker that writes files puts them.

        Raises UserError for a name that accelerate does not know or whose package is missing.
        """
        self._trackers: list[Any] = []
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        if wanted:
            PartialState()  # trackers ask it whether they are on the main process
        settings = {k: str(v) if v is None else v for k, v in config.items()}
        for name in wanted:
            tracker = _class(name)
            where = {"logging_dir": str(folder)} if tracker.requires_logging_directory else {}
            run = {"name": folder.name} if name in _NAMES_RUNS else {}
            started = tracker(PROJECT, **where, **run)
            started.start()
            started.store_init_configuration(settings)
            self._trackers.append(started)

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass on a step's numbers; what was not measured is left out."""
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "step"
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=row["step"])

    def finish(self) -> None:
        """Close them; some send only then."""
        for tracker in self._trackers:
            tracker.finish()


def _class(name: str) -> Any:
    known = {str(kind): made for kind, made in LOGGER_TYPE_TO_CLASS.items()}
    if name not in known:
        raise UserError(f"trackers: {name!r} is unknown; choose of {', '.join(sorted(known))}")
    if name not in map(str, get_available_trackers()):
        raise UserError(f"trackers: {name} is not installed; pip install {name}")
    return known[name]
