"""A comparison's runs: of the task that is asked for, each to its end, none left over."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small import model_folder

from rftkit import RunConfig, compare
from rftkit.errors import DivergedError
from rftkit.runs import RunFolder

SMALL = RunConfig(
    model=model_folder(), precision="fp32", task="game", prompts=2, group=2, steps=3,
    max_new_tokens=4, eval_prompts=2, eval_every=3, samples=0, patience=2,
)  # fmt: skip


def test_workers_end_with_a_killed_comparison(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "rftkit.cli", "compare", "--model", model_folder(),
        "--steps", "100000", "--workers", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    parent = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _until(lambda: len(list(tmp_path.glob("*/metrics.jsonl"))) == 2)
    family = parent.children(recursive=True)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    for process in alive:
        process.kill()
    assert family
    assert not alive


def test_the_task_is_the_configs_unless_one_is_named(tmp_path: Path) -> None:
    for task, name in (("game", None), ("dialogue", "dialogue")):
        out = tmp_path / task
        summary = compare(name, ["none"], out=out, config=SMALL, progress=False)
        assert summary["task"] == task
        assert RunFolder(out / "none-seed0").config().task == task


def test_one_coef_for_two_kinds_of_constraint_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*constraints: str, coef: float | None = 0.1) -> bool:
        caplog.clear()
        with pytest.raises(DivergedError):
            compare(constraints=constraints, out=tmp_path, config=SMALL, coef=coef)
        return "coef = 0.1 is both β of KL and λ of the others" in caplog.text

    monkeypatch.setattr("rftkit.comparison.run_all_to_the_end", lambda *_: {"kl": "no training"})
    assert told("kl", "identity")
    assert not told("kl", "identity", coef=None)
    assert not told("none", "kl")
    assert not told("none", "identity")


def test_a_run_that_diverges_ends_no_other_and_is_named(tmp_path: Path) -> None:
    beyond = 1e39  # what a 32-bit number holds, so that the KL loss overflows at once
    with pytest.raises(DivergedError) as error:
        compare(
            constraints=["none", "kl"], seeds=[0, 1], out=tmp_path, config=SMALL, workers=1,
            progress=False, coef=beyond,
        )  # fmt: skip
    told = str(error.value)
    assert told.startswith("2 of 4 runs diverged, the others are finished: kl, seed 0, in ")
    for seed in (0, 1):
        assert f"kl, seed {seed}, in {tmp_path / f'kl-seed{seed}'}: stopped at step 1, 2" in told
        assert RunFolder(tmp_path / f"none-seed{seed}").metrics()[-1]["step"] == 3
    assert "lower lr (now 0.001) or change coef" in told


def _until(done, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "the workers did not start"
        time.sleep(0.2)
