"""A comparison's workers: they leave nothing running when the comparison is killed."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
from small import model_folder


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


def _until(done, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "the workers did not start"
        time.sleep(0.2)
