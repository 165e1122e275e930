"""A domain is one file and one line in the registry: a fourth one is registered and trained on."""

from pathlib import Path

import echo_task
import pytest
from small import model_folder

from rftkit import RunConfig, Trainer, UserError
from rftkit.tasks import REGISTRY, load_task


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "echo", "echo_task:Echo")


def test_its_file_is_short_and_its_task_is_found_by_name() -> None:
    assert len(Path(echo_task.__file__).read_text(encoding="utf-8").splitlines()) < 40
    assert isinstance(load_task("echo"), echo_task.Echo)


@pytest.mark.parametrize("constraint", ["none", "kl", "dynamic"])
def test_one_trains_on_it(tmp_path: Path, constraint: str) -> None:
    config = RunConfig(
        task="echo", constraint=constraint, model=model_folder(), steps=3, prompts=4, group=4,
        eval_every=3, eval_prompts=4, lr=0.05,
    )  # fmt: skip
    metrics = Trainer(config, out=tmp_path).train()
    assert metrics[-1]["step"] == 3
    assert all(0 <= row["degenerate"] <= 1 for row in (metrics[0], metrics[-1]))
    assert (tmp_path / "checkpoint").is_dir()


def test_a_task_that_the_embedded_model_never_saw_is_refused() -> None:
    with pytest.raises(UserError, match=r"task: .*learned only code, dialogue, game, not echo"):
        Trainer(RunConfig(task="echo"))
