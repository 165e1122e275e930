"""The command line: the contract's JSON on stdout, one line and status 2 for a user's mistake."""

import json
from pathlib import Path

import pytest
from small import model_folder

from rftkit.cli import main

SMALL = ["--model", model_folder(), "--prompts", "2", "--group", "2",
         "--eval-prompts", "4", "--steps", "3", "--eval-every", "2"]  # fmt: skip


def test_compare_writes_the_contracts_files(tmp_path: Path, capsys) -> None:
    arguments = [
        "compare",
        "--task",
        "dialogue",
        "--seeds",
        "0,1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main([*arguments, *SMALL]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) >= {"task", "gold_max", "steps", "seeds", "methods"}
    assert (summary["task"], summary["steps"], summary["seeds"]) == ("dialogue", 3, [0, 1])
    assert list(summary["methods"]) == ["none", "kl", "dynamic"]
    for method in summary["methods"].values():
        assert set(method) >= {
            "coef",
            "gold_reward",
            "task_reward",
            "degenerate",
            "kl",
            "seconds_per_step",
        }
        assert len(method["gold_reward"]["per_seed"]) == 2
        low, high = method["gold_reward"]["ci95"]
        assert low <= method["gold_reward"]["mean"] <= high
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    folders = {p.parent.name for p in tmp_path.glob("*/metrics.jsonl")}
    assert folders == {f"{c}-seed{s}" for c in ("none", "kl", "dynamic") for s in (0, 1)}
    # A second call finds all done and changes nothing.
    assert main([*arguments, *SMALL]) == 0
    assert json.loads(capsys.readouterr().out) == summary


def test_refine_prints_one_json_object(capsys) -> None:
    prompt, response = "For Ana: small tea, milk, to go.", "Hello, Ana! One small small tea, to go."
    command = ["refine", "--task", "dialogue", "--prompt", prompt, "--response", response, "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"response", "refined", "changed", "edit_ratio", "diff"}
    assert result["response"] == response
    assert result["changed"] is True
    assert result["refined"] == "Hello, Ana! One small tea, to go."
    assert all(op in ("equal", "insert", "delete") for op, _ in result["diff"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--task", "nope", "--out", "x"], "nope"),
        (["train", "--constraint", "nope", "--out", "x"], "nope"),
        (["train", "--seed", "-1", "--out", "x"], "seed"),
        (["train", "--seed", "one", "--out", "x"], "--seed"),
        (["train", "--model", "no/such/folder", "--out", "x"], "no/such/folder"),
        (["train", "--steps", "3"], "--out"),
        (["train", "--out", ""], "--out: is empty"),
        (["compare", "--constraints", "none,nope"], "nope"),
        (["compare", "--seeds", "a,b"], "--seeds"),
        (["compare", "--seeds", "-3"], "seed"),
        (["compare", "--steps", "0"], "steps"),
        (["refine", "--task", "nope", "--prompt", "p", "--response", "r"], "nope"),
        (["nope"], "nope"),
        ([], "COMMAND"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(
    arguments: list[str], named: str, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


@pytest.mark.parametrize("command", ["compare", "train", "refine", "doctor", "pretrain", "study"])
def test_every_command_has_help_with_an_example(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "example: rftkit " + command in " ".join(capsys.readouterr().out.split())
