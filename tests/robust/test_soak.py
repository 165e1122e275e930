"""The long tests, `make soak`: kills at random in every phase, a disk that is really full, and
2,000 steps. What they counted is in the test's output (`-s`)."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jupyter_client.manager import start_new_kernel
from kills import in_child, kill_points, killed_at
from small import model_folder
from test_interruption import records, train

from rftkit import UserError
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


@pytest.mark.parametrize("name", ["state0.safetensors", "state1.safetensors", "model.safetensors"])
def test_a_broken_checkpoint_of_pre_training_is_named(tmp_path: Path, name: str) -> None:
    def stopped() -> None:
        pretrain(TINY_RECIPE, tmp_path, progress=False)

    last = killed_at_save(2)
    assert in_child(stopped, last) == -signal.SIGKILL
    path = tmp_path / "checkpoint" / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"checkpoint is broken .*; restore it or choose") as error:
        stopped()
    assert "\n" not in str(error.value)


def killed_at_save(number: int) -> Callable[..., None]:
    """A profile function that kills pre-training as it begins its save of that number."""
    left = [number]

    def profile(frame, event: str, called) -> None:
        if event == "call" and frame.f_code.co_qualname == "_save":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return profile


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
                assert "resource_tracker" not in told
        for folder in out.glob("*-seed0"):
            RunFolder(folder).metrics()
    subprocess.run(small("compare", out, *options), check=True, **quiet)
    for name in ("none-seed0", "dynamic-seed0"):
        assert records(out / name) == records(tmp_path / "whole" / name)


STUDY = """
import sys
from pathlib import Path
from test_study import small, study
study(Path(sys.argv[1], "runs"), Path(sys.argv[1], "records"), workers=1,
      protocol=small(sys.argv[2]), progress=False)
"""


def test_a_study_goes_on_after_kills(tmp_path: Path) -> None:
    """The records in the end are those of a study that nothing cut short, but for its times."""
    places = {"PYTHONPATH": str(Path(__file__).parents[1])}
    rng, quiet = random.Random(5), {"env": os.environ | places, "stderr": subprocess.DEVNULL}

    def command(out: Path) -> list[str]:
        return [sys.executable, "-c", STUDY, str(out), model_folder()]

    def kept(out: Path) -> dict[str, list[dict]]:
        files = {f.name: f.read_text().splitlines() for f in (out / "records").glob("*.jsonl")}
        rows = {name: map(json.loads, lines) for name, lines in files.items()}
        return {n: [{**row, "seconds": None} for row in rows_of] for n, rows_of in rows.items()}

    subprocess.run(command(tmp_path / "whole"), check=True, **quiet)
    cut, kills = tmp_path / "cut", 0
    for _ in range(3):
        with subprocess.Popen(command(cut), start_new_session=True, **quiet) as job:
            begun = time.monotonic()
            while job.poll() is None and not list(cut.rglob("metrics.jsonl")):
                assert time.monotonic() - begun < 300
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 3))
            kills += job.poll() is None
            with contextlib.suppress(ProcessLookupError):
                job.kill()
        time.sleep(1)  # its workers end by themselves
        for folder in (path.parent for path in cut.rglob("config.json")):
            RunFolder(folder).metrics()
    subprocess.run(command(cut), check=True, **quiet)
    assert kills
    assert kept(cut) == kept(tmp_path / "whole")
    print(f"{kills} kills of a study survived")


def test_the_stop_button_of_a_notebook_saves_and_says_so(tmp_path: Path) -> None:
    """What JupyterLab's button does: it interrupts the kernel."""
    code = f"""
from rftkit import RunConfig, Trainer
config = RunConfig(model={model_folder()!r}, precision="fp32", steps=10**6, prompts=2, group=2,
                   max_new_tokens=4, eval_prompts=2, eval_every=10**6, coef=1.0)
Trainer(config, "run").train()
"""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))

    def reply(message: str) -> dict:
        while True:  # those of the kernel's start may come first
            found = client.get_shell_msg(timeout=120)
            if found["parent_header"]["msg_id"] == message:
                return found["content"]

    try:
        training = client.execute(code)
        begun, run = time.monotonic(), RunFolder(tmp_path / "run")
        while len(run.metrics()) < 3:
            assert time.monotonic() - begun < 600
            time.sleep(0.2)
        manager.interrupt_kernel()
        told = reply(training)
        assert told["ename"] == "KeyboardInterrupt"
        steps = len(run.metrics())
        assert told["evalue"] == f"stopped before step {steps}, saved in run; --resume goes on"
        check = f"assert Trainer(config, 'run', resume=True).done == {steps}"
        assert reply(client.execute(check))["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


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
    script = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "soak.json")], capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
