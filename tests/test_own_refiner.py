"""A refiner that is a function of the user's own: what it returns is what training learns from."""

import io
import json
import re
from pathlib import Path

import pytest
from small import model_folder

from rftkit import RunConfig, Trainer, UserError, load_policy
from rftkit.cli import main
from rftkit.constraints import NoConstraint, make_constraint, unused_settings
from rftkit.models import Policy
from rftkit.own_refiner import OwnRefiner
from rftkit.runs import RunFolder
from rftkit.side_by_side import Chat

ORDER = [{"role": "user", "content": "For Ana: small tea, milk, to go."}]
FLOODED = "Hello, Ana! One small tea. Thanks! Thanks! Thanks!"
SMALL = {"prompts": 2, "group": 2, "steps": 2, "eval_prompts": 4, "max_new_tokens": 24,
         "coef": 1.0}  # fmt: skip


def once(prompts: list, responses: list[str]) -> list[str]:
    """Say no word twice in a row."""
    assert all(messages[-1]["role"] == "user" for messages in prompts)
    return [re.sub(r"(\b[\w!]+)( \1)+", r"\1", text) for text in responses]


def broken(prompts: list, responses: list[str]) -> list[str]:
    raise RuntimeError("no\nservice")


def short(prompts: list, responses: list[str]) -> list[str]:
    return responses[1:]


def lowered(prompts: list, responses: list[str]) -> list[str]:
    return [text.lower() for text in responses]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("tiny")


def test_its_text_is_the_refined_response(policy: Policy) -> None:
    refiner = OwnRefiner(policy, "test_own_refiner:once")
    flooded, kept = refiner.refine([ORDER] * 2, [FLOODED, "Hello, Ana!"])
    assert flooded.refined == "Hello, Ana! One small tea. Thanks!"
    assert flooded.edit_ratio > 0
    assert flooded.refined_ids[-1] == policy.tokenizer.eos_token_id
    assert kept.refined_ids == kept.response_ids
    assert refiner.passes == 0


def test_what_is_fine_keeps_its_tokens_and_gets_an_end(policy: Policy) -> None:
    ids = policy.encode("Hello, Ana!")
    split = [i for letter in "Hello" for i in policy.encode(letter)]  # other tokens, the same text
    refiner = OwnRefiner(policy, "test_own_refiner:once")
    end = policy.tokenizer.eos_token_id
    cut_off, other = refiner.refine_ids([ORDER] * 2, [ids, [*split, end]])
    assert cut_off.refined_ids == [*ids, end]
    assert other.refined_ids == [*split, end]


def test_one_trains_with_it(tmp_path: Path) -> None:
    config = RunConfig.from_dict(
        SMALL | {"refiner": "test_own_refiner:lowered", "max_new_tokens": 64}
    )
    metrics = Trainer(config, tmp_path / "run").train(progress=False)
    assert metrics[0]["changed"] > 0.9
    assert metrics[0]["strength"] > 0
    refined = [sample["refined"] for sample in RunFolder(tmp_path / "run").samples()]
    assert refined == [text.lower() for text in refined]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("broken", "refiner: test_own_refiner:broken failed with RuntimeError: no service"),
        ("short", "refiner: test_own_refiner:short must return a list with one text a response"),
        ("absent", "refiner: module 'test_own_refiner' has no function 'absent'"),
    ],
)
def test_a_mistake_in_it_is_one_line(function: str, says: str) -> None:
    config = RunConfig.from_dict(
        SMALL | {"model": model_folder(), "refiner": f"test_own_refiner:{function}"}
    )
    with pytest.raises(UserError) as caught:
        Trainer(config).train(progress=False)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--refiner", "once"], "refiner: 'once' must be module:function, such as my_rules:once"),
        (["--refiner", "a:b", "--refiner-noise", "1"], "refiner: your own excludes the other"),
        (["--refiner", "a:b", "--constraint", "fresh"], "refiner: goes with constraint dynamic"),
    ],
)
def test_the_command_line_says_what_does_not_go(options, says, tmp_path, capsys) -> None:
    command = ["train", "--model", model_folder(), "--task", "dialogue", "--constraint", "dynamic",
               "--steps", "1", "--out", str(tmp_path / "run"), *options]  # fmt: skip
    assert main(command) != 0
    assert says in capsys.readouterr().err


def test_a_refiner_that_nothing_asks_is_told(tmp_path: Path, capsys) -> None:
    command = ["train", "--model", model_folder(), "--steps", "1", "--prompts", "2", "--group", "2",
               "--max-new-tokens", "4", "--eval-prompts", "2", "--refine-share", "0.5"]  # fmt: skip
    for constraint, told in (("kl", True), ("dynamic", False)):
        out = str(tmp_path / constraint)
        assert main([*command, "--coef", "1", "--constraint", constraint, "--out", out]) == 0
        assert ("refine_share changes nothing" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("constraint", "unused"),
    [
        ("none", ["coef", "kl_form", "sft_on", "refine_share"]),
        ("kl", ["sft_on", "refine_share"]),
        ("dynamic", ["kl_form"]),
        ("identity", ["kl_form"]),
    ],
)
def test_settings_that_a_constraint_does_not_read_are_known(constraint: str, unused: list) -> None:
    policy = load_policy(model_folder())
    made = make_constraint(policy, RunConfig(constraint=constraint))
    given = ["lr", "coef", "kl_form", "sft_on", "refine_share"]
    assert unused_settings(given, made) == unused


def test_a_constraint_of_ones_own_may_read_any_setting() -> None:
    class Own(NoConstraint):
        name = "own"

    own = Own(load_policy(model_folder()), RunConfig())
    assert unused_settings(["coef", "kl_form"], own) == []


def endless(prompts: list, responses: list[str]) -> list[str]:
    return [text + " tea" * 500 for text in responses]


def test_what_is_too_long_is_refused(tmp_path: Path) -> None:
    config = RunConfig.from_dict(SMALL | {"refiner": "test_own_refiner:endless"})
    metrics = Trainer(config, tmp_path / "run").train(progress=False)
    assert metrics[0]["refused_cut_off"] == 1
    assert metrics[0]["edit_ratio"] == 0
    assert metrics[0]["refined_length"] <= SMALL["max_new_tokens"] + 1


@pytest.mark.parametrize(
    ("settings", "refined"),
    [
        ([], "Hello, Ana! One small tea. Thanks!"),
        (["--refiner", "test_own_refiner:lowered"], FLOODED.lower()),
        (["--refiner-cuts", " Thanks!"], "Hello, Ana! One small tea."),
    ],
)
def test_the_command_refines_with_any_refiner(settings: list[str], refined: str, capsys) -> None:
    text = ORDER[0]["content"], FLOODED
    assert main(["refine", "--prompt", text[0], "--response", text[1], "--json", *settings]) == 0
    assert json.loads(capsys.readouterr().out)["refined"] == refined


def test_chat_shows_what_the_runs_own_refiner_says(tmp_path: Path) -> None:
    config = RunConfig.from_dict(SMALL | {"refiner": "test_own_refiner:lowered", "steps": 1})
    Trainer(config, tmp_path / "run").train(progress=False)
    _, refinement = Chat(tmp_path / "run").answer(ORDER[0]["content"])
    assert refinement.refined == refinement.response.lower() != refinement.response


def test_a_prompt_that_is_too_long_does_not_end_the_chat(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    config = RunConfig.from_dict(SMALL | {"steps": 1, "constraint": "none"})
    Trainer(config, tmp_path / "run").train(progress=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("tea " * 5000 + "\n\n" + "Hi\n"))
    assert main(["chat", "--run", str(tmp_path / "run")]) == 0
    first, *block = capsys.readouterr().out.splitlines()
    assert first.startswith("prompt: text 1 of 1 has ")
    assert "shorten it" in first
    assert block[0].split() == ["policy", "reference", "refined"]
