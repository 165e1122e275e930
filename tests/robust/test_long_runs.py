"""The soak test's own test: a run that leaks is found out; and the recorded run kept its promises.

The run of 2,000 steps itself is `make soak`.
"""

import importlib.util
import json
import mmap
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from small import model_folder

from rftkit import RunConfig
from rftkit.paths import DATA

PLACE = Path(__file__).resolve().parents[1] / "benchmarks" / "soak.py"
SPEC = importlib.util.spec_from_file_location("soak", PLACE)
soak = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(soak)

SMALL = RunConfig(
    model=model_folder(), precision="fp32", prompts=2, group=2, max_new_tokens=2, eval_prompts=2,
    eval_every=4, coef=1.0, lr=1e-6, samples=1,
)  # fmt: skip
RECORDS = sorted((DATA / "runs").glob("soak.json"))
VERSIONS = sorted((DATA / "runs").glob("versions.json"))


def test_an_honest_run_keeps_what_can_be_promised_of_a_short_one(tmp_path: Path) -> None:
    found = soak.measure(SMALL, 24, tmp_path / "run")
    broken = [b for b in soak.broken(found) if "memory" not in b and "speed" not in b]
    assert broken == []
    assert json.loads(json.dumps(found)) == found


@pytest.mark.skipif(sys.platform == "win32", reason="`sleep` is not there")
def test_whatever_leaks_is_found_out(tmp_path: Path) -> None:
    kept: list = []

    def leak(step: int) -> None:
        kept.append((tmp_path / f"{step}").open("w"))
        kept.append(mmap.mmap(-1, 20_000_000))  # not from what earlier tests have freed
        kept[-1].write(b"x" * 20_000_000)
        if step == 23:
            kept.append(subprocess.Popen(["sleep", "600"]))
            with (tmp_path / "run/metrics.jsonl").open("a") as file:
                file.write(20_000 * " ")

    try:
        broken = " ".join(soak.broken(soak.measure(SMALL, 24, tmp_path / "run", leak)))
    finally:
        for thing in kept:
            if isinstance(thing, subprocess.Popen):
                thing.kill()
                thing.wait()
            else:
                thing.close()
    for named in ("memory grew by", "more handles", "1 more processes", "1 processes left",
                  "bytes predicted"):  # fmt: skip
        assert named in broken


@pytest.mark.parametrize(
    ("early", "late", "named"), [(1.0, 0.94, "94.0% of the first"), (1.0, 0.96, "")]
)
def test_a_slower_end_is_found_out(early: float, late: float, named: str) -> None:
    held = {"handles": 9, "processes": 0, "threads": 2}
    found = {"memory_growth": 0.01, "speed_late_over_early": late / early, "log_bytes": 100,
             "log_bytes_predicted": 101, "held_before": held,
             "held_early_late_after": [held, held, held]}  # fmt: skip
    assert named in "".join(soak.broken(found))
    assert bool(soak.broken(found)) == bool(named)


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.name)
def test_the_recorded_long_run_kept_its_promises(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["steps"], found["model"]) == (2000, "tiny")
    assert soak.broken(found) == []


@pytest.mark.parametrize("path", VERSIONS, ids=lambda p: p.name)
def test_the_recorded_runs_of_all_tests_passed_with_packages_in_range(path: Path) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert "oldest" in {row["kind"] for row in rows}
    allowed = [Requirement(line) for line in requires("rftkit") or ()]
    for row in rows:
        assert row["failed"] == 0
        assert row["passed"] > 1000
        for requirement in allowed:
            assert row["packages"][requirement.name] in requirement.specifier, requirement
