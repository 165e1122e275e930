"""The long tests, `make soak`: kills at random in every phase, a disk that is really full, and
2,000 steps. What they measured is in the test's output (`-s`)."""

import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from kills import in_child, kill_points, killed_at
from small import model_folder
from test_interruption import records, train

from rftkit import RunConfig, Trainer
from rftkit.runs import RunFolder
from rftkit.tiny.pretrain import PretrainConfig, pretrain

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(sys.platform != "linux", reason="forks and kills processes"),
]
TINY_RECIPE = PretrainConfig(
    steps=6, batch=4, micro_batches=2, vocab_size=300, hidden=32, layers=1, heads=2,
    intermediate=32, save_every=2,
)  # fmt: skip
STEPS = 2000


def small(command: str, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "rftkit.cli", command, "--model", model_folder(), "--prompts", "2",
        "--group", "2", "--max-new-tokens", "4", "--eval-prompts", "2", "--eval-every", "2",
        "--save-every", "2", "--steps", "12", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    yield
    torch.set_num_threads(threads)


def test_a_run_survives_twenty_kills(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train(whole)
    points = kill_points(lambda: train(tmp_path / "counted"), tmp_path / "notes", 3, seed=3)[:20]
    for point in points:
        out = tmp_path / str(point)
        assert in_child(lambda out=out: train(out), killed_at(point)) == -signal.SIGKILL
        RunFolder(out).metrics()
        assert in_child(lambda out=out: train(out, resume=True)) == 0
        assert records(out) == records(whole), point
        shutil.rmtree(out)
    print(f"{len(points)} kills survived")
    assert len(points) == 20


def test_pre_training_survives_kills(tmp_path: Path) -> None:
    def work(out: Path) -> Path:
        return pretrain(TINY_RECIPE, out, progress=False) / "model.safetensors"

    whole = work(tmp_path / "whole").read_bytes()
    points = kill_points(lambda: work(tmp_path / "counted"), tmp_path / "notes", 4, seed=4)
    for point in points:
        out = tmp_path / str(point)
        assert in_child(lambda out=out: work(out), killed_at(point)) == -signal.SIGKILL
        assert in_child(lambda out=out: work(out)) == 0
        assert (out / "model/model.safetensors").read_bytes() == whole, point
    print(f"{len(points)} kills of pre-training survived")
    assert len(points) >= 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_comparison_goes_on_after_a_stop(tmp_path: Path, number: int) -> None:
    rng, options = random.Random(int(number)), ("--constraints", "none,dynamic", "--json")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    subprocess.run(small("compare", tmp_path / "whole", *options), check=True, **quiet)
    out = tmp_path / "cut"
    for _ in range(3):
        with subprocess.Popen(
            small("compare", out, *options), start_new_session=True, **quiet
        ) as job:
            begun = time.monotonic()
            while job.poll() is None and not list(out.glob("*/metrics.jsonl")):
                assert time.monotonic() - begun < 300
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 2))
            if number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    job.send_signal(
                        number
                    )  # to the parent alone; its workers must end by themselves
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.pid, number)  # as a terminal does
            told = job.communicate()[1]
            if number == signal.SIGINT and job.returncode == 130:
                assert "rftkit: stopped" in told
                assert "Traceback" not in told
        for folder in out.glob("*-seed0"):
            RunFolder(folder).metrics()
    subprocess.run(small("compare", out, *options), check=True, **quiet)
    for name in ("none-seed0", "dynamic-seed0"):
        assert records(out / name) == records(tmp_path / "whole" / name)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 200 kB, in a name space of its own."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=200k none {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*alone, mount]).returncode:
        pytest.skip("this system lets us mount nothing")
    arguments = " ".join(f"'{word}'" for word in small("train", tmp_path / "run"))
    again = f"{arguments} --resume 2>&1 | tail -n 1"
    script = f"{mount} && {arguments} 2>/dev/null; {again}; ls {tmp_path}/run"
    done = subprocess.run([*alone, script], capture_output=True, text=True)
    assert "cannot be written (" in done.stdout
    assert "free some space, then --resume goes on" in done.stdout
    assert "config.json" in done.stdout


def test_two_thousand_steps(tmp_path: Path) -> None:
    """Memory, handles, processes, log size and speed stay as they were after 50 steps."""
    config = RunConfig(
        model=model_folder(), precision="fp32", steps=STEPS, prompts=2, group=2, max_new_tokens=8,
        eval_prompts=4, eval_every=50, coef=1.0, lr=1e-5,
    )  # fmt: skip
    me, seconds, sizes, memory = psutil.Process(), [], [], []
    handles, family = 0, 0
    run = Trainer(config, tmp_path / "run")
    for row in run.steps():
        if row["step"] == STEPS:
            break
        seconds.append(row["seconds"])
        sizes.append((tmp_path / "run/metrics.jsonl").stat().st_size)
        memory.append(me.memory_info().rss)
        if row["step"] == 50:
            handles, family = me.num_fds(), len(me.children(recursive=True))
    first, last = statistics.median(seconds[5:105]), statistics.median(seconds[-100:])
    early, late = max(memory[:51]), statistics.median(memory[-50:])
    predicted = sizes[99] / 100 * STEPS
    found = {
        "memory growth": late / early - 1, "speed of the last 100": first / last,
        "log size / predicted": sizes[-1] / predicted, "rss GB": late / 1e9,
        "handles": [handles, me.num_fds()],
    }  # fmt: skip
    print(json.dumps(found))
    assert found["memory growth"] < 0.02
    assert found["speed of the last 100"] > 0.95
    assert abs(found["log size / predicted"] - 1) < 0.05
    assert me.num_fds() <= handles
    assert len(me.children(recursive=True)) == family
