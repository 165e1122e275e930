"""What the refiners of "why", and the controls, do to drafts: `python -m rftkit.study.refiners`.

data/runs/study/refiners.json has a row for each refiner on each task, with the figures of
`rftkit.tiny.quality.refining`. A refiner stopped early is the same in all of its runs (seed: null);
noise on the weights is drawn anew for each seed, so each draw is a refiner of its own. A control is
measured by the same figures, with what it hands over in the refiner's place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from rftkit.config import RunConfig
from rftkit.faults import make_refiner
from rftkit.files import write_text
from rftkit.models import load_policy
from rftkit.paths import DATA
from rftkit.study.analysis import TUNED
from rftkit.study.methods import Settings
from rftkit.study.plan import PROTOCOL
from rftkit.study.records import sha256, versions
from rftkit.tasks import load_task
from rftkit.tiny.quality import SPARE, refining

FILE = DATA / "runs" / "study" / "refiners.json"
PROMPTS = 64  # held-out ones; four drafts of each kind for each


def refiners() -> Iterator[tuple[str, int | None, Settings]]:
    """Name, seed and settings of each refiner of "why", and of each control."""
    yield TUNED, None, {}
    for v in PROTOCOL.variations:
        if v.group in ("training", "damage"):
            for seed in v.seeds if v.group == "damage" else (None,):
                yield v.name, seed, v.settings
    for m in PROTOCOL.methods:
        if m.kind == "control":
            yield m.name, None, m.settings


def measure(task: str, seed: int | None, settings: Settings, prompts: int) -> dict[str, float]:
    """What a refiner does to drafts of one task; shares."""
    found = load_task(task)
    limit = found.max_new_tokens + SPARE
    config = RunConfig(task=task, max_new_tokens=limit, seed=seed or 0, **settings)
    refiner = make_refiner(load_policy("tiny"), config, config.constraint)
    return refining(refiner, found, found.prompts("heldout")[:prompts])


def record(
    path: Path = FILE, tasks: Sequence[str] = PROTOCOL.tasks, prompts: int = PROMPTS
) -> None:
    """Measure all of them and write them to `path`."""
    work = [(task, *refiner) for task in tasks for refiner in refiners()]
    rows = [
        {"task": task, "refiner": name, "seed": seed}
        | {k: round(v, 4) for k, v in measure(task, seed, settings, prompts).items()}
        for task, name, seed, settings in tqdm(work, unit="refiner")
    ]
    whole = {"model": sha256("tiny"), "versions": versions(), "prompts": prompts, "rows": rows}
    write_text(path, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    record()
