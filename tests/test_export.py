"""What comes out of a run: a plain model, its card, a chat in the terminal, numbers in trackers."""

import io
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from peft import PeftModel
from small import instruct_folder, orders
from transformers import AutoModelForCausalLM, AutoTokenizer

from rftkit import RunConfig, Trainer, UserError, load_policy
from rftkit.cli import main
from rftkit.refiner import Refinement
from rftkit.rollout import DenseCopy
from rftkit.side_by_side import block


class Notebook(tracking.GeneralTracker):
    """A tracker of a user's own, by accelerate's interface."""

    name = "notebook"
    requires_logging_directory = False
    written: list[Any]

    def __init__(self, project: str, **_: Any):
        super().__init__()
        Notebook.written = [project]

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        Notebook.written.append(values["task"])

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        Notebook.written.append((step, values))

    def finish(self) -> None:
        Notebook.written.append("done")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One step of training in 4 bits on a made-up instruct model, activations recomputed."""
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(
        model=instruct_folder(), data=orders(folder), steps=1, prompts=2, group=2,
        max_new_tokens=6, lr=0.05, warmup=1, samples=1, trackers="notebook", device="cpu",
        checkpointing=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpointing.* is deprecated", FutureWarning)
        patch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
        patch.setattr(tracking, "_available_trackers", ["notebook"])
        Trainer(config, folder / "run").train(progress=False)
    return folder / "run"


def test_a_tracker_hears_what_metrics_jsonl_says(run: Path) -> None:
    project, task, (step, values), *rest = Notebook.written
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert (project, task, step) == ("rftkit", "dialogue", 0)
    assert values == {k: v for k, v in first.items() if isinstance(v, (int, float)) and k != "step"}
    assert rest[-1] == "done"


@pytest.mark.parametrize(
    ("name", "says"), [("nothing", "is unknown; choose of"), ("mlflow", "pip install mlflow")]
)
def test_a_tracker_that_is_not_there_is_named(tmp_path, monkeypatch, name: str, says: str) -> None:
    from rftkit.tracking import Trackers

    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(UserError, match=rf"^trackers: .*{says}"):
        Trackers(name, tmp_path, {})


def test_the_checkpoint_is_an_adapter_that_plain_peft_loads(run: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(instruct_folder())
    plain = PeftModel.from_pretrained(base, run / "checkpoint").eval()
    policy = load_policy(instruct_folder(), "fp32", "cpu", adapter=run / "checkpoint")
    ids = torch.tensor([policy.encode("small tea")])
    with torch.no_grad():
        found = plain(ids).logits
        torch.testing.assert_close(found, policy.model(ids).logits)
        with plain.disable_adapter():
            assert (plain(ids).logits - found).abs().max() > 0.01


@pytest.mark.parametrize("options", [[], ["--four-bit"]])
def test_the_merged_model_is_the_trained_policy(run: Path, tmp_path, options: list[str]) -> None:
    out = tmp_path / "merged"
    assert main(["merge", "--run", str(run), "--out", str(out), *options]) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    policy = load_policy(instruct_folder(), "nf4", "cpu", adapter=run / "checkpoint")
    ids = torch.tensor([policy.encode_chat([{"role": "user", "content": "small tea"}])])
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    with torch.no_grad():
        found, trained = model(ids).logits, policy.model(ids).logits
        with policy.reference():
            base = policy.model(ids).logits
    assert (trained - base).abs().max() > 0.01
    if options:
        assert model.config.quantization_config.load_in_4bit
        assert (found - DenseCopy(policy).net(ids).logits).abs().mean() < base.abs().mean()
    else:
        torch.testing.assert_close(found, trained, atol=1e-4, rtol=1e-4)


def test_the_card_says_what_was_trained_and_measured(run: Path, tmp_path) -> None:
    main(["merge", "--run", str(run), "--out", str(tmp_path / "merged")])
    card = (tmp_path / "merged/README.md").read_text()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "constraint `dynamic`" in card
    assert ", 1 step of 2 × 2 rollouts" in card
    assert f"| {last['gold_reward']:.3f} |" in card
    assert "base_model" not in card  # a folder of this machine is no name


def test_the_card_tells_of_the_checkpoint_not_of_steps_behind_it(run: Path, tmp_path) -> None:
    further = shutil.copytree(run, tmp_path / "run")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (further / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last | {"step": 2, "gold_reward": 1.234}) + "\n")
    main(["merge", "--run", str(further), "--out", str(tmp_path / "merged")])
    card = (tmp_path / "merged/README.md").read_text()
    assert "1.234" not in card
    assert f"| {last['gold_reward']:.3f} |" in card


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--out x", "give --run, or --adapter"),
        ("--run nothing --out x", "not a run's config"),
        ("--adapter nothing --out x", "no adapter_config.json"),
    ],
)
def test_a_mistake_in_merging_is_one_line(
    capsys, tmp_path, monkeypatch, arguments: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_chat_answers_what_is_typed(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("For Ana: small tea, milk, to go.\n\n"))
    assert main(["chat", "--run", str(run)]) == 0
    heads = capsys.readouterr().out.splitlines()[0].split()
    assert heads == ["policy", "reference", "refined"]


def test_texts_stand_side_by_side_and_control_nothing() -> None:
    hostile = "Hi\x1b[2J there\x07"
    diff = [["equal", "Hi"], ["delete", "\x1b[2J there\x07"]]
    shown = block("Hello there", Refinement([1, 2], [1], hostile, "Hi", diff), width=80)
    lines = shown.splitlines()
    assert lines[2].split("   ")[0].strip() == "Hi␛[2J there␇"
    assert "Hello there" in lines[2]
    assert all(len(line) <= 80 for line in lines[:3])
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
