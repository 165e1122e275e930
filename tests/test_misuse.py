"""Misuse is told in one line or does no harm: folders, users' functions, odd settings."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from small import model_folder, orders

from rftkit import OnlineRefiner, RunConfig, Trainer, UserError, compare, load_policy
from rftkit.cli import main
from rftkit.constraints import make_constraint, unused_settings
from rftkit.health import idle_reason
from rftkit.plugins import in_a_line, load_function
from rftkit.runs import RunFolder
from rftkit.sweep import sweep
from rftkit.tasks import task_of

SMALL = {"model": model_folder(), "precision": "fp32", "prompts": 2, "group": 2, "steps": 2,
         "max_new_tokens": 6, "eval_prompts": 2, "eval_every": 2, "samples": 1, "coef": 1.0,
         "save_every": 1}  # fmt: skip
ORDER = "For Ana: small tea, milk, to go."


def meddles(prompts, completions, **columns) -> list[float]:
    """Changes all that it is given."""
    for prompt in prompts:
        prompt[-1]["content"] = "X"
    for values in columns.values():
        for value in values:
            if isinstance(value, list):
                value.clear()
    return [float(i) for i in range(len(completions))]


def prints(prompts, completions, **columns) -> list[float]:
    print("hello from the reward")
    return [1.0] * len(completions)


def large(prompts, completions, **columns) -> list[int]:
    return [10**400] * len(completions)


def empties(prompts: list, responses: list[str]) -> list[str]:
    prompts[0][-1]["content"] = "X"
    responses.clear()
    return []


def echoes(prompts: list, responses: list[str]) -> list[str]:
    for prompt in prompts:
        prompt[-1]["content"] = "X"
    return responses


def endless(prompts: list, responses: list[str]) -> list[str]:
    return ["tea " * 500 for _ in responses]


def config(**settings) -> RunConfig:
    return RunConfig.from_dict(SMALL | settings)


def options(**settings) -> list[str]:
    """The same for the command line."""
    pairs = (SMALL | settings).items()
    return [text for key, value in pairs for text in (f"--{key.replace('_', '-')}", str(value))]


def train(out: Path, resume: bool = False, **settings) -> Trainer:
    trainer = Trainer(config(**settings), out, resume=resume)
    trainer.train(progress=False)
    return trainer


# Folders


def test_a_merge_leaves_the_folders_beside_it_alone(tmp_path: Path) -> None:
    train(tmp_path / "run", constraint="none")
    for name in ("merged.old", "merged.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    command = ["merge", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]
    assert main(command) == 0
    assert (tmp_path / "merged/model.safetensors").is_file()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run", "merged", "merged.old", "merged.new"}
    assert all((tmp_path / f"merged.{name}/notes.txt").is_file() for name in ("old", "new"))


def test_what_a_run_needs_no_other_option_names(tmp_path: Path, capsys) -> None:
    command = ["merge", "--run", str(tmp_path), "--model", "tiny", "--out", str(tmp_path / "m")]
    assert main(command) == 2
    assert "merge: --run says itself which model; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["checkpoint", "metrics.jsonl"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_half_a_run_is_not_taken(tmp_path: Path, what: str, resume: bool) -> None:
    """It may be someone else's, or a run of other settings that lost its config.json."""
    train(tmp_path / "run", constraint="kl")
    (tmp_path / "run/config.json").unlink()
    other = tmp_path / "run" / ("metrics.jsonl" if what == "checkpoint" else "checkpoint")
    shutil.rmtree(other) if other.is_dir() else other.unlink()
    with pytest.raises(UserError, match=r"but no config\.json; restore it, or choose another"):
        train(tmp_path / "run", resume, constraint="dynamic")
    assert (tmp_path / "run" / what).exists()


def test_another_data_file_is_another_run(tmp_path: Path) -> None:
    data = orders(tmp_path)
    train(tmp_path / "run", data=data, task="dialogue")
    train(tmp_path / "run", True, data=data, task="dialogue", steps=3)
    text = Path(data).read_text(encoding="utf-8")
    Path(data).write_text(text.replace("small", "large"), encoding="utf-8")
    for steps in (3, 4):
        with pytest.raises(UserError, match=r"orders\.jsonl: is not the file that the run in"):
            train(tmp_path / "run", True, data=data, task="dialogue", steps=steps)
    assert RunFolder(tmp_path / "run").config().steps == 3


def test_a_broken_setting_of_a_run_names_its_file(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, config())
    (tmp_path / "config.json").write_text('{"format": 1, "lr": "fast"}')
    with pytest.raises(UserError, match=r"config\.json: lr: 'fast' must be"):
        run.config()


def test_resume_says_where_no_run_was(tmp_path: Path, capsys) -> None:
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), *options(steps=1)]) == 0
    assert "held no run yet; a new one begins" in capsys.readouterr().err


# Functions of the user's own


def test_a_reward_cannot_change_what_training_sees(tmp_path: Path) -> None:
    given = {"data": orders(tmp_path), "task": "dialogue", "reward": "test_misuse:meddles"}
    task = task_of(config(**given))
    before = [prompt.row() for prompt in task.prompts("train")]
    few = task.prompts("train")
    task.score(few, ["x"] * len(few), [True] * len(few))
    assert [prompt.row() for prompt in task.prompts("train")] == before
    train(tmp_path / "run", constraint="none", **given)
    assert all(row["prompt"] != "X" for row in RunFolder(tmp_path / "run").samples())


def test_a_refiner_cannot_change_its_arguments() -> None:
    policy = load_policy(model_folder(), "fp32")
    constraint = make_constraint(policy, config(refiner="test_misuse:echoes"))
    (found,) = constraint.refiner.refine([[{"role": "user", "content": ORDER}]], ["Hello!"])
    assert found.refined == "Hello!"
    constraint = make_constraint(policy, config(refiner="test_misuse:empties"))
    with pytest.raises(UserError, match=r"must return a list with one text a response \(1 here\)"):
        constraint.refiner.refine([ORDER], ["Hello!"])


def test_json_stays_json_where_a_reward_prints(tmp_path: Path, capfd) -> None:
    """In worker processes too."""
    settings = options(reward="test_misuse:prints")
    command = ["compare", "--constraints", "none", "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, *settings]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["methods"]["none"]["coef"] is not None
    assert "hello from the reward" in err


def test_a_column_cannot_take_an_arguments_name(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": str(i)}], "prompts": i} for i in range(5)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"task": "own", "data": str(tmp_path / "mine.jsonl"), "reward": "test_misuse:prints"}
    with pytest.raises(UserError, match=r"mine\.jsonl:1: a column cannot be called prompts"):
        task_of(config(**own))


def test_a_number_too_large_for_a_reward_is_named(tmp_path: Path) -> None:
    task = task_of(config(data=orders(tmp_path), task="dialogue", reward="test_misuse:large"))
    prompts = task.prompts("train")[:1]
    with pytest.raises(UserError, match="each reward must be a finite number"):
        task.score(prompts, ["x"], [True])


def test_a_module_that_ends_the_program_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rftkit_test_exits.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot be imported \(SystemExit: 0\)"):
        load_function("refiner", "rftkit_test_exits:f", "a:b")


def test_an_error_that_cannot_be_printed_has_its_kind() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert in_a_line(MuteError()) == "MuteError"


# Settings and arguments


@pytest.mark.parametrize(
    ("prompts", "responses", "told"),
    [
        ("ab", "cd", "a list of prompts and a list of as many responses"),
        ([ORDER], ["x", "y"], "a list of prompts and a list of as many responses"),
        ([ORDER], [None], "each response must be a text"),
        ([{"role": "user", "content": ORDER}], ["x"], "a prompt is a text or a list of messages"),
    ],
)
def test_refine_says_what_it_takes(prompts, responses, told: str) -> None:
    with pytest.raises(UserError, match=told):
        OnlineRefiner(load_policy(model_folder(), "fp32")).refine(prompts, responses)


def test_a_broken_refiner_is_not_taken_for_one_that_refuses(tmp_path: Path) -> None:
    train(tmp_path / "run", refiner_noise=1e300, samples=0)
    skipped = [row["skipped"] for row in RunFolder(tmp_path / "run").metrics()[:-1]]
    assert skipped == ["refiner's logits not finite"] * 2


def test_a_refiner_that_refuses_all_is_pointed_out() -> None:
    given = {"model": "tiny", "prompts": 4, "group": 4, "max_new_tokens": 48}
    row = next(Trainer(config(refiner="test_misuse:endless", **given)).steps())
    assert row["refused"] == 1
    assert row["idle"].startswith("every refinement was refused (refused_* say why)")


def test_adaptive_beta_cannot_start_at_zero() -> None:
    policy = load_policy(model_folder(), "fp32")
    with pytest.raises(UserError, match="coef: 0 stays 0 under kl_target"):
        make_constraint(policy, config(constraint="kl", coef=0.0, kl_target=0.1))


def test_coefficients_that_share_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two are the same to six digits"):
        sweep(config(), [1.0000001, 1.0000002], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_compare_names_what_it_takes_by_another_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"constraint and seed go by seeds=… and constraints=…"):
        compare("dialogue", out=tmp_path, seed=3, constraint="kl")


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    made = config(steps=np.int64(3), coef=np.float32(0.5), lr=np.float64(1e-3))
    assert json.loads(json.dumps(made.to_dict()))["steps"] == 3
    summary = compare(
        "dialogue", ["none"], np.arange(1), out=tmp_path, config=config(), progress=False
    )
    assert summary["seeds"] == [0]


def test_all_sampled_tokens_are_counted(tmp_path: Path) -> None:
    given = {"data": orders(tmp_path), "task": "dialogue", "reward": "test_misuse:prints"}
    once, thrice = (
        next(Trainer(config(constraint="none", resample=n, **given)).steps()) for n in (0, 2)
    )
    assert thrice["tokens"] > 2 * once["tokens"]


def test_resample_is_no_remedy_where_it_is_set() -> None:
    told = [idle_reason(config(resample=n), 1.0, [True]) for n in (0, 2)]
    assert [text.endswith(", or set resample") for text in told] == [True, False]


def test_identity_needs_no_other_refiner() -> None:
    given = {"refiner_model": model_folder(), "edit_limit": 0.2}
    policy = load_policy(model_folder(), "fp32")
    constraint = make_constraint(policy, config(constraint="identity", **given))
    assert constraint.refiner.policy is policy
    assert unused_settings(given, constraint) == list(given)


def test_bytes_that_are_no_text_end_no_chat(tmp_path: Path, monkeypatch, capsys) -> None:
    train(tmp_path / "run", constraint="none")
    typed = io.TextIOWrapper(io.BytesIO(b"small tea \xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    assert main(["chat", "--run", str(tmp_path / "run")]) == 0
    assert "reference" in capsys.readouterr().out
