"""A run that is cut short: it goes on bit for bit, or ends in one line that says what to do."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kills import in_child, kill_points, killed_at
from small import model_folder
from tqdm import tqdm

from rftkit import RunConfig, Trainer, UserError, cli
from rftkit.export import merge_run
from rftkit.files import replace_file
from rftkit.runs import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills processes")

SETTINGS = {"model": model_folder(), "precision": "fp32", "prompts": 2, "group": 2, "steps": 4,
            "max_new_tokens": 4, "eval_prompts": 2, "eval_every": 2, "save_every": 2, "samples": 1,
            "constraint": "dynamic", "coef": 1.0}  # fmt: skip
CONFIG = RunConfig.from_dict(SETTINGS)


def train(out: Path, resume: bool = False) -> Trainer:
    torch.set_num_threads(1)  # a forked child has none of the parent's threads
    trainer = Trainer(CONFIG, out, resume=resume)
    trainer.train(progress=False)
    return trainer


def records(out: Path) -> tuple[list[dict], list[dict]]:
    run = RunFolder(out)
    metrics = [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]
    return metrics, run.samples()


def one_line(out: Path, work) -> str:
    """The message of the UserError that `work` must end in, in a child of its own."""
    told = out.with_name(out.name + ".told")

    def tell() -> None:
        with pytest.raises(UserError) as error:
            work()
        told.write_text(str(error.value))

    assert in_child(tell) == 0
    text = told.read_text()
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    train(out)
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def cut(tmp_path: Path, whole: Path) -> Path:
    """A run that was stopped after its first checkpoint."""

    def two_steps() -> None:
        torch.set_num_threads(1)
        for metrics in Trainer(CONFIG, tmp_path / "run").steps():
            if metrics["step"] == 2:
                os._exit(0)

    assert in_child(two_steps) == 0
    return tmp_path / "run"


def test_killed_in_any_phase_a_run_goes_on_bit_for_bit(tmp_path: Path, whole: Path) -> None:
    points = kill_points(lambda: train(tmp_path / "counted"), tmp_path / "notes", 1, seed=1)
    assert (
        len(points) == 7
    )  # one a phase: set-up, evaluation, rollout, refine, update, save, record
    for point in points:
        out = tmp_path / str(point)
        assert in_child(lambda out=out: train(out), killed_at(point)) == -signal.SIGKILL
        RunFolder(out).metrics()  # readable as it is
        assert in_child(lambda out=out: train(out, resume=True)) == 0
        assert records(out) == records(whole), point


def test_killed_while_resuming_a_run_still_goes_on(tmp_path: Path, cut: Path, whole: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cut, copy)
    points = kill_points(lambda: train(copy, resume=True), tmp_path / "notes", 1, seed=2)
    for point in points[::3]:
        assert in_child(lambda: train(cut, resume=True), killed_at(point)) == -signal.SIGKILL
    assert in_child(lambda: train(cut, resume=True)) == 0
    assert records(cut) == records(whole)


@pytest.mark.parametrize("size", [700, 3000, 40_000])
def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, whole: Path, size: int) -> None:
    """No file can grow beyond `size`: writes fail within a line or within the checkpoint."""

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(tmp_path / "run")

    told = one_line(tmp_path / "run", on_a_full_disk)
    assert "free some space, then --resume" in told
    assert str(tmp_path / "run") in told
    assert not list((tmp_path / "run").glob("*new*"))
    assert in_child(lambda: train(tmp_path / "run", resume=True)) == 0
    assert records(tmp_path / "run") == records(whole)


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_without_write_permission_is_named(cut: Path, known: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "run")
        cut.rename(place)
        for path in (Path(folder), place, *place.glob("*.json*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

        def begin() -> None:
            root = os.geteuid() == 0
            os.seteuid(65534 if root else os.geteuid())  # for root no folder is read-only
            try:
                run = RunFolder.create(place if known else place / "new", CONFIG, resume=True)
                with run.alone():
                    pass
            finally:
                os.seteuid(0 if root else os.geteuid())

        told = one_line(cut, begin)
        Path(folder).chmod(0o755)
        place.chmod(0o755)
    assert str(place) in told
    assert "cannot be written (Permission denied); choose another --out" in told


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99, None])
@pytest.mark.parametrize("name", ["state.safetensors", "adapter_model.safetensors"])
def test_a_broken_checkpoint_is_named(cut: Path, name: str, keep: float | None) -> None:
    path = cut / "checkpoint" / name
    if keep is None:
        path.unlink()
    else:
        os.truncate(path, int(path.stat().st_size * keep))
    before = records(cut)
    with pytest.raises(UserError, match=r"checkpoint is broken .*; restore it or choose") as error:
        Trainer(CONFIG, cut, resume=True)
    assert "\n" not in str(error.value)
    assert records(cut) == before, "a failed resume takes nothing away"


@pytest.mark.parametrize("command", ["chat", "merge"])
def test_a_broken_checkpoint_is_named_by_every_command(cut: Path, capsys, command: str) -> None:
    path = cut / "checkpoint" / "adapter_model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    out = ["--out", str(cut / "merged")] if command == "merge" else []
    assert cli.main([command, "--run", str(cut), *out]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "checkpoint is broken" in told
    assert not (cut / "merged").exists()


@pytest.mark.parametrize("change", [{"format": 99}, {"format": None}, {"nonsense": 1}])
def test_a_run_of_another_format_is_told(cut: Path, change: dict) -> None:
    place = cut / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    told = r"format (99|None), but this version|unknown field nonsense"
    with pytest.raises(UserError, match=told):
        Trainer(CONFIG, cut, resume=True)


def test_a_run_from_before_a_setting_was_there_goes_on(cut: Path, whole: Path) -> None:
    place = cut / "config.json"
    settings = json.loads(place.read_text())
    del settings["trackers"], settings["patience"]
    place.write_text(json.dumps(settings))
    train(cut, resume=True)
    assert records(cut) == records(whole)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "curves.png"
    place.write_bytes(b"before")

    def half(new: Path) -> None:
        new.write_bytes(b"ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"curves\.png: cannot be written .*free some space"):
        replace_file(place, half)
    assert place.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [place]


def test_a_model_is_merged_whole_or_not_at_all(cut: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(UserError, match=r"merged: cannot be written"):
        merge_run(cut, cut / "merged")
    assert not list(cut.glob("merged*"))


def test_lost_records_and_a_lost_checkpoint_are_told(cut: Path) -> None:
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match=r"metrics\.jsonl: not all steps up to the checkpoint's, 2"):
        Trainer(CONFIG, cut, resume=True)
    (cut / "metrics.jsonl").write_text(lines[0] + "{]\n" + lines[1])
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a record"):
        Trainer(CONFIG, cut, resume=True)
    (cut / "metrics.jsonl").write_text("".join(lines))
    (cut / "checkpoint").rename(cut / "elsewhere")
    with pytest.raises(UserError, match=r"checkpoint: is missing"):
        Trainer(CONFIG, cut, resume=True)


def test_half_a_line_is_cut_away(cut: Path, whole: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (cut / name).open("a") as file:
            file.write('{"step": 3, "task_re')
    train(cut, resume=True)
    assert records(cut) == records(whole)


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    steps = Trainer(CONFIG, tmp_path / "run").steps()
    next(steps)
    with pytest.raises(UserError, match="another process is at work in it"):
        Trainer(CONFIG, tmp_path / "run", resume=True)
    steps.close()
    assert Trainer(CONFIG, tmp_path / "run", resume=True).done == 1


def test_a_run_has_one_writer_though_its_config_is_replaced(tmp_path: Path) -> None:
    """As it is for more steps; Windows replaces no file that is open."""
    run = RunFolder.create(tmp_path / "run", CONFIG)
    with run.alone():
        held = {os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()}
        assert not any(path.endswith("config.json") for path in held)
        run._write(CONFIG)
        with pytest.raises(UserError, match="another process is at work in it"), run.alone():
            pass


def test_a_run_from_before_the_lock_had_a_file_goes_on(cut: Path, whole: Path) -> None:
    (cut / "run.lock").unlink()
    train(cut, resume=True)
    assert records(cut) == records(whole)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_step_saves_and_says_so(
    tmp_path: Path, whole: Path, monkeypatch, number: int
) -> None:
    trainer = Trainer(CONFIG, tmp_path / "run")
    honest = trainer._update

    def stopped(*arguments):
        if trainer.done == 1:
            os.kill(os.getpid(), number)
        return honest(*arguments)

    monkeypatch.setattr(trainer, "_update", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"before step 2, saved in .*run; --resume goes on"):
        trainer.train(progress=False)
    assert [row["step"] for row in RunFolder(tmp_path / "run").metrics()] == [0, 1]
    trainer = train(tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == records(whole)


@pytest.mark.usefixtures("ctrl_c")
def test_a_stop_between_two_steps_saves_as_well(tmp_path: Path, whole: Path, monkeypatch) -> None:
    trainer = Trainer(CONFIG, tmp_path / "run")
    update = tqdm.update

    def stopped(bar, n: float = 1):
        if trainer.done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(bar, n)

    monkeypatch.setattr(tqdm, "update", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"before step 3, saved in .*run; --resume goes on"):
        trainer.train(progress=False)
    monkeypatch.undo()
    resumed = Trainer(CONFIG, tmp_path / "run", resume=True)
    assert resumed.done == 3, "though it saves only every second step"
    resumed.train(progress=False)
    assert records(tmp_path / "run") == records(whole)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_stop_is_obeyed_at_once_and_the_trainer_then_refuses(
    tmp_path: Path, whole: Path, monkeypatch
) -> None:
    trainer = Trainer(CONFIG, tmp_path / "run")

    def stopped_twice(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "_update", stopped_twice)
    with pytest.raises(KeyboardInterrupt, match="in the middle of a step"):
        trainer.train(progress=False)
    with pytest.raises(UserError, match="resume=True"):
        trainer.train(progress=False)
    train(tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == records(whole)


def test_a_comparison_that_is_asked_to_stop_saves_its_runs_and_says_one_line(
    tmp_path: Path,
) -> None:
    settings = f"--model {model_folder()} --prompts 2 --group 2 --max-new-tokens 4"
    settings += " --eval-prompts 2 --save-every 1000 --steps 1000"
    command = [sys.executable, "-m", "rftkit.cli", "compare", "--constraints", "none,dynamic"]
    out = tmp_path / "out"
    command += [*settings.split(), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        begun = time.monotonic()
        while job.poll() is None and len(list(out.glob("*/metrics.jsonl"))) < 2:
            assert time.monotonic() - begun < 120
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)  # as a scheduler does; Ctrl-C takes the same way
        told = job.communicate()[1]
    assert job.returncode == 130, told
    assert "rftkit: stopped; what was written stays, the same command goes on" in told
    assert "Traceback" not in told
    assert "resource_tracker" not in told
    for folder in out.glob("*-seed0"):
        rows = RunFolder(folder).metrics()
        assert 0 < len(rows) < 1000
        assert Trainer(RunFolder(folder).config(), folder, resume=True).done == len(rows)


def test_training_works_outside_the_main_thread(tmp_path: Path, whole: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert records(tmp_path / "run") == records(whole)
