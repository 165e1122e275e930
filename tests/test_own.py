"""A user's own data and reward: what they meet on the way, and that nothing is lost by it."""

import json
from pathlib import Path

import pytest
from small import instruct_folder, model_folder

from rftkit import RunConfig, Trainer, UserError
from rftkit.cli import main
from rftkit.comparison import run_all
from rftkit.config import PRESETS
from rftkit.estimate import estimate
from rftkit.options import config_of
from rftkit.presets import best_settings
from rftkit.runs import RunFolder
from rftkit.tasks.base import read_prompts
from rftkit.tiny.pretrain import PretrainConfig

calls = {"late": 0}
judged: list[set[str]] = []  # prompts of each call of `brief`
SMALL = {"model": "tiny", "task": "dialogue", "prompts": 2, "group": 2, "max_new_tokens": 6,
         "eval_prompts": 2, "constraint": "none", "eval_every": 100}  # fmt: skip


def plain(prompts, completions, **columns) -> list[float]:
    return [float(len(c[0]["content"])) for c in completions]


def late(prompts, completions, **columns) -> list[float]:
    """A judge that gives up once, at its fifth call."""
    calls["late"] += 1
    if calls["late"] == 5:
        raise TimeoutError("the judge does not answer")
    return plain(prompts, completions)


def leaves(prompts, completions, **columns) -> list[float]:
    raise SystemExit(3)


def huge(prompts, completions, **columns) -> list[float]:
    return [1e308] * len(completions)


def brief(prompts, completions, **columns) -> list[float]:
    """Gold: short is best; keeps what it was asked about."""
    judged.append({p[-1]["content"] for p in prompts})
    return [1.0 / (1 + len(c[0]["content"])) for c in completions]


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}."}]} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "mine.jsonl")


def test_a_preset_is_found_for_them(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr("rftkit.presets.gpu_gb", lambda: 24.0)
    given = {"model": instruct_folder(), "task": "own", "data": data, "reward": "test_own:plain"}
    assert best_settings(given)["prompts"] == PRESETS["gpu_24gb"]["prompts"]
    found = estimate(RunConfig.from_dict(given))
    assert found["largest_preset"] == "gpu_24gb"
    assert best_settings(given | {"model": "tiny"}) == PRESETS["cpu_tiny"]
    assert best_settings(given | {"model": "tiny", "device": "cuda"}) != PRESETS["cpu_tiny"]


def test_a_preset_is_judged_with_what_the_user_set() -> None:
    given = {"model": instruct_folder(), "max_new_tokens": 512}
    config = RunConfig.from_dict(given)
    plainly = estimate(config, given=given)["presets"]["gpu_24gb"]
    more = estimate(config, given=given | {"prompts": 64, "group": 64})["presets"]["gpu_24gb"]
    assert more["peak_gb"] > 3 * plainly["peak_gb"]


def test_estimate_takes_the_command_lines_settings(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "--model", instruct_folder(), "--json", "--max-new-tokens", "512"]
    peaks = []
    for more in ([], ["--prompts", "64", "--group", "64"]):
        assert main([*command, *more]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["presets"]["cpu_tiny"]["peak_gb"])
    assert peaks[1] > 3 * peaks[0]


def test_a_judge_that_gives_up_costs_no_step(tmp_path: Path) -> None:
    calls["late"] = 0
    config = RunConfig.from_dict(SMALL | {"steps": 6, "reward": "test_own:late"})
    with pytest.raises(UserError) as caught:  # call 1 is an evaluation, call 5 the fourth step's
        Trainer(config, tmp_path / "run").train(progress=False)
    assert "the judge does not answer" in str(caught.value)
    assert "stopped before step 3, saved in" in str(caught.value)
    assert "--resume goes on" in str(caught.value)
    before = RunFolder(tmp_path / "run").metrics()
    assert [row["step"] for row in before] == [0, 1, 2]
    Trainer(config, tmp_path / "run", resume=True).train(progress=False)
    after = RunFolder(tmp_path / "run").metrics()
    assert after[:3] == before
    assert [row["step"] for row in after] == list(range(7))
    calls["late"] = 100
    whole = Trainer(config, tmp_path / "whole").train(progress=False)
    assert [r["task_reward"] for r in whole] == [r["task_reward"] for r in after]


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("leaves", "reward: test_own:leaves failed with SystemExit: 3"),
        ("huge", "reward: test_own:huge returned 1e\\+308; each reward must be a finite number"),
    ],
)
def test_a_reward_that_ends_the_process_or_overflows_is_told(reward: str, says: str) -> None:
    config = RunConfig.from_dict(SMALL | {"steps": 1, "reward": f"test_own:{reward}"})
    with pytest.raises(UserError, match=says):
        Trainer(config).train(progress=False)


@pytest.mark.parametrize("task", ["own", "dialogue"])
def test_a_gold_reward_of_ones_own_judges_and_trains_nothing(
    tmp_path: Path, data: str, task: str
) -> None:
    own = {"task": "own", "data": data, "model": instruct_folder()} if task == "own" else {}
    settings = SMALL | own | {"steps": 3, "reward": "test_own:plain", "seed": 5}
    runs = {}
    for gold in ("", "test_own:brief"):
        judged.clear()
        config = RunConfig.from_dict(settings | {"gold": gold})
        trainer = Trainer(config, tmp_path / (gold.partition(":")[2] or "none"))
        runs[gold] = trainer.train(progress=False)
    assert len(judged) == 2, "at the evaluations before the first and after the last step alone"
    assert judged[1] == {p.text for p in trainer.task.prompts("heldout")}
    assert trainer.task.gold_max == 1.0
    for plainly, with_gold in zip(*runs.values(), strict=True):
        assert with_gold["task_reward"] == plainly["task_reward"]
        assert with_gold["grad_norm"] == plainly["grad_norm"]
    last = runs["test_own:brief"][-1]
    assert 0 < last["gold_reward"] < 1 < last["task_reward"]
    with pytest.raises(UserError, match="gold: test_own:leaves failed with SystemExit: 3"):
        Trainer(RunConfig.from_dict(settings | {"gold": "test_own:leaves"})).train(progress=False)


def test_a_first_try_that_failed_does_not_claim_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="SystemExit"):
        Trainer(RunConfig.from_dict(SMALL | {"steps": 1, "reward": "test_own:leaves"}), out).train()
    (out / "samples.jsonl").unlink(missing_ok=True)
    config = RunConfig.from_dict(SMALL | {"steps": 1, "reward": "test_own:plain"})
    Trainer(config, out).train(progress=False)
    assert RunFolder(out).config().reward == "test_own:plain"
    with pytest.raises(UserError, match="holds a run already"):
        Trainer(config, out)


def test_another_programs_config_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    for resume in (False, True):
        with pytest.raises(UserError):
            RunFolder.create(tmp_path, RunConfig(), resume)
    assert "Qwen2" in (tmp_path / "config.json").read_text()


def test_the_mark_that_windows_puts_first_is_no_row(tmp_path: Path, data: str) -> None:
    marked = tmp_path / "marked.jsonl"
    marked.write_text(Path(data).read_text(), encoding="utf-8-sig")
    assert [p.text for p in read_prompts(marked)] == [p.text for p in read_prompts(Path(data))]
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read \(No such file or directory"):
        read_prompts(tmp_path / "none.jsonl")


def test_a_row_that_is_too_long_is_told_before_any_step(tmp_path: Path) -> None:
    texts = ["Say 0.", "Say 1.", "Say it again. " * 400, "Say 3."]
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    data = tmp_path / "long.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    given = {"model": instruct_folder(), "task": "own", "data": str(data), "prompts": 2}
    config = RunConfig.from_dict(SMALL | given | {"reward": "test_own:plain"})
    says = r"long\.jsonl: row 3 of 4 has \d+ tokens and needs room for 6 more"
    with pytest.raises(UserError, match=says):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("column", "test", "says"),
    [
        ("tests", {"call": "f(1", "expect": "2"}, r"tests\[1\]: 'call' is not a Python expression"),
        ("hidden_tests", {"call": "f(1)", "expect": "two"}, r"hidden_tests\[1\]: 'expect' is not"),
    ],
)
def test_a_code_row_whose_tests_cannot_be_read_is_told_before_any_step(
    tmp_path: Path, column: str, test: dict[str, str], says: str
) -> None:
    good = {"call": "f(1)", "expect": "2"}
    row = {"prompt": [{"role": "user", "content": "Double a number; name it f."}],
           "name": "f", "tests": [good], "hidden_tests": [good]}  # fmt: skip
    bad = row | {column: [good, test]}
    data = tmp_path / "code.jsonl"
    data.write_text("\n".join(["", *map(json.dumps, [row, row, row, bad])]))
    config = RunConfig.from_dict(SMALL | {"task": "code", "data": str(data)})
    with pytest.raises(UserError, match=rf"code\.jsonl:5: {says}"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_absurd_numbers_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers: -3 must be at least 0"):
        run_all([(RunConfig(model=model_folder()), tmp_path / "run")], -3, False)
    with pytest.raises(UserError, match="steps: -1 must be at least 0"):
        PretrainConfig(steps=-1)


def test_a_refused_refinement_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["refine", "--model", instruct_folder(), "--prompt", "Hi", "--response", "tea tea"]
    for more in ([], ["--json"]):
        assert main([*command, *more]) == 0
        assert "refused: cut off; the response stays as it is" in capsys.readouterr().err


def test_config_of_names_a_task_of_ones_own(data: str) -> None:
    from rftkit.cli import _parser

    line = ["train", "--out", "x", "--data", data, "--reward", "test_own:plain"]
    assert config_of(_parser().parse_args(line)).task == "own"
