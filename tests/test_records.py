"""The recorded runs: they load with this code, and what is said about them is what they hold."""

import json
from pathlib import Path

import pytest

from rftkit.constraints import TUNED
from rftkit.metrics import mean
from rftkit.paths import DATA
from rftkit.report import PAGES, fill
from rftkit.runs import RunFolder

RUNS = DATA / "runs"
SWEEPS = sorted(RUNS.glob("tuning/*/sweep.json"))
SUMMARIES = sorted(RUNS.glob("*/summary.json"))


def test_there_are_records() -> None:
    assert SWEEPS
    assert SUMMARIES


@pytest.mark.parametrize("path", sorted(RUNS.rglob("config.json")), ids=lambda p: p.parent.name)
def test_every_recorded_run_loads(path: Path) -> None:
    run = RunFolder(path.parent)
    assert run.metrics()[-1]["step"] == run.config().steps


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.parent.name)
def test_the_shipped_coefficients_are_the_best_of_their_sweep(path: Path) -> None:
    sweep = json.loads(path.read_text(encoding="utf-8"))
    means = {
        float(coef): mean([r["gold_reward"] for r in sweep["runs"] if r["coef"] == float(coef)])
        for coef in sweep["gold_reward"]
    }
    assert max(means, key=means.__getitem__) == sweep["best"]
    if path.parent.name == f"{sweep['task']}-{sweep['constraint']}":
        assert TUNED[sweep["constraint"]][sweep["task"]] == sweep["best"]


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda p: p.parent.name)
def test_results_use_no_tuning_seed_and_repeat_what_the_runs_say(path: Path) -> None:
    summary = json.loads(path.read_text(encoding="utf-8"))
    tuned_on = {seed for sweep in SWEEPS for seed in json.loads(sweep.read_text())["seeds"]}
    assert not tuned_on & set(summary["seeds"])
    for name, method in summary["methods"].items():
        last = [RunFolder(path.parent / f"{name}-seed{s}").metrics()[-1] for s in summary["seeds"]]
        for key in ("gold_reward", "task_reward", "degenerate", "kl"):
            assert method[key]["per_seed"] == [row[key] for row in last]
            assert method[key]["mean"] == pytest.approx(mean([row[key] for row in last]))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_the_recorded_numbers(page: str) -> None:
    text = (DATA.parent / page).read_text(encoding="utf-8")
    assert "<!-- study: all -->" in text
    assert fill(text) == text


def test_every_recorded_comparison_is_on_the_page_of_results() -> None:
    text = (DATA.parent / "docs/results.md").read_text(encoding="utf-8")
    found = {f"results: {path.parent.name}" for path in SUMMARIES if path.parent.parent == RUNS}
    wanted = found | {"bench: bench-gpu", "study: doses", "study: limits"}
    assert found
    assert all(f"<!-- {block} -->" in text for block in wanted)


def test_a_gpu_had_the_same_outcome() -> None:
    found = json.loads((RUNS / "dialogue-gpu/summary.json").read_text(encoding="utf-8"))["methods"]
    gold = {name: method["gold_reward"]["mean"] for name, method in found.items()}
    assert gold["none"] < 0.1 < gold["kl"] < gold["dynamic"] - 0.5
    assert found["dynamic"]["degenerate"]["mean"] <= 0.03
    for name in found:
        assert RunFolder(RUNS / f"dialogue-gpu/{name}-seed3").config().device == "cuda"


def test_the_dialogue_result_is_what_the_readme_claims() -> None:
    summary = json.loads((RUNS / "dialogue/summary.json").read_text(encoding="utf-8"))
    none, kl, dynamic = (summary["methods"][name] for name in ("none", "kl", "dynamic"))
    top = summary["gold_max"]
    assert len(summary["seeds"]) >= 3
    assert dynamic["gold_reward"]["mean"] >= 0.93 * top
    assert min(dynamic["gold_reward"]["per_seed"]) >= 0.8 * top
    assert max(dynamic["degenerate"]["per_seed"]) <= 0.03
    assert min(none["degenerate"]["per_seed"]) >= 0.8
    for other in (none, kl):
        for key in ("gold_reward", "best_gold_reward"):
            assert dynamic["gold_reward"]["mean"] - other[key]["mean"] >= 0.2 * top
    assert all(end <= start / 5 for start, end in dynamic["edit_ratio"])


@pytest.mark.parametrize("task", ["code", "game"])
def test_code_and_game_come_out_as_the_readme_claims(task: str) -> None:
    summary = json.loads((RUNS / task / "summary.json").read_text(encoding="utf-8"))
    none, kl, dynamic = (summary["methods"][name] for name in ("none", "kl", "dynamic"))
    top = summary["gold_max"]
    assert len(summary["seeds"]) >= 3
    assert 0.3 <= none["start_gold_reward"] / top <= 0.7
    assert min(dynamic["gold_reward"]["per_seed"]) >= 0.85 * top
    assert max(dynamic["degenerate"]["per_seed"]) <= 0.05
    for other in (none, kl):
        assert dynamic["gold_reward"]["mean"] - other["gold_reward"]["mean"] >= 0.1 * top
    assert none["degenerate"]["mean"] > 0.4


def test_seed_0_ends_as_the_results_and_lesson_05_say() -> None:
    def golds(folder: str) -> list[float]:
        rows = RunFolder(RUNS / folder / "dynamic-seed0").metrics()
        return [row["gold_reward"] for row in rows if row["gold_reward"] is not None]

    demo, text = golds("demo"), (DATA.parent / "docs/results.md").read_text(encoding="utf-8")
    assert f"on that seed it ends at {demo[-1]:.2f}" in text
    assert demo[-1] >= 0.93 * 1.5
    for earlier, end in (("fourth", 0.59), ("sixth", 0.10)):
        rows = golds(f"earlier/{earlier}")
        assert max(rows) > 1.4
        assert rows[-1] == pytest.approx(end, abs=0.005)
