"""What the study's refiners do to drafts, as it is recorded."""

import json
from pathlib import Path

import pytest

from rftkit.study import refiners
from rftkit.study.plan import PROTOCOL
from rftkit.study.records import sha256


def test_every_refiner_of_why_and_every_control_is_recorded_for_each_task() -> None:
    whole = json.loads(refiners.FILE.read_text(encoding="utf-8"))
    assert whole["model"] == sha256("tiny")
    found = [(row["task"], row["refiner"], row["seed"]) for row in whole["rows"]]
    wanted = [
        (task, name, seed) for task in PROTOCOL.tasks for name, seed, _ in refiners.refiners()
    ]
    assert found == wanted
    assert len(wanted) == 3 * (1 + 3 + 3 * 3 + 3)


def test_a_damaged_refiner_changes_what_is_fine(tmp_path: Path, monkeypatch) -> None:
    few = [("as tuned", None, {}), ("damage 0.4", 10, {"refiner_noise": 0.4})]
    monkeypatch.setattr(refiners, "refiners", lambda: few)
    refiners.record(tmp_path / "found.json", tasks=("game",), prompts=4)
    whole, damaged = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    assert whole["kept_clean"] == 1.0
    assert damaged["kept_clean"] < 0.5
    recorded = json.loads(refiners.FILE.read_text(encoding="utf-8"))["rows"]
    (same,) = (r for r in recorded if (r["task"], r["refiner"], r["seed"]) == ("game", *few[1][:2]))
    assert damaged["kept_clean"] == pytest.approx(same["kept_clean"], abs=0.3)
