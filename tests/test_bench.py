"""`rftkit bench`: that its report is whole and adds up; never how fast anything is."""

import io
import json
import sys
from contextlib import redirect_stdout

import pytest
import torch
from small import model_folder

from rftkit import RunConfig, UserError, load_policy, load_task
from rftkit.bench import FLOORS, bench, table
from rftkit.cli import main
from rftkit.memory import tensor_peak_gb
from rftkit.peer import Generate, run_trl, trl_settings
from rftkit.rollout import Sampler

ROWS, LONGEST, ROUNDS = 4, 4, 2
SMALL = RunConfig(model=model_folder(), prompts=2, group=2, max_new_tokens=LONGEST, lr=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def report(folder) -> dict:
    """One bench with everything, through the command line."""
    sizes = {"--prompts": 2, "--group": 2, "--max-new-tokens": LONGEST, "--rounds": ROUNDS}
    options = [str(part) for option in sizes.items() for part in option]
    command = ["bench", "--peer", "trl", "--model", SMALL.model, "--profile", str(folder), "--json"]
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*command, *options]) == 0
    return json.loads(out.getvalue())  # fails if anything else was printed


def test_it_reports_what_the_contract_says(report: dict) -> None:
    assert set(report["seconds_per_step"]) == {"none", "kl", "dynamic", "trl"}
    assert set(report["tokens_per_second"]) == {"dense", "direct", "generate"}
    for group in ("seconds_per_step", "tokens_per_second"):
        for spread in report[group].values():
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert report["machine"]["gflops"] > 0
    assert all(limit > 0 for limit in report["decoding_limit"].values())
    dense = report["tokens_per_second"]["dense"]["median"]
    for name, limit in report["decoding_limit"].items():
        assert report["share_of_limit"][name] == pytest.approx(dense / limit)
    assert 0 <= report["sampler_mismatch"] < 1e-4  # fp32 on both sides
    assert report["rounds"] == ROUNDS


def test_ratios_are_the_quotients_of_what_is_reported(report: dict) -> None:
    medians = {
        name: spread["median"]
        for group in ("seconds_per_step", "tokens_per_second")
        for name, spread in report[group].items()
    }
    memory = {"memory_process", "memory_tensors", "estimate_to_measured"}
    assert set(report["ratios"]) == {*FLOORS, *memory}
    for name, (above, below, sense, floor) in FLOORS.items():
        ratio = report["ratios"][name]
        assert ratio["value"] == pytest.approx(medians[above] / medians[below])
        assert (ratio["sense"], ratio["floor"]) == (sense, floor)
        assert ratio["met"] == (
            ratio["value"] <= floor if sense == "at most" else ratio["value"] >= floor
        )
    peaks = report["peak_memory_gb"]
    for kind in ("process", "tensors"):
        quotient = peaks["policy_reference_refiner"][kind] / peaks["policy"][kind]
        assert report["ratios"][f"memory_{kind}"]["value"] == pytest.approx(quotient)
    found = report["ratios"]["estimate_to_measured"]
    quotient = peaks["estimated_tensors"] / peaks["policy_reference_refiner"]["tensors"]
    assert found["value"] == pytest.approx(quotient)
    assert found["met"] == (abs(quotient - 1) <= found["floor"])


def test_every_constraint_gets_the_same_rollouts(report: dict) -> None:
    """Else their times would not compare: the policy must not move, the samples must be shared."""
    tokens = report["tokens"]
    assert tokens["none"] == tokens["kl"] == tokens["dynamic"]
    assert all(0 < count <= ROWS * LONGEST for count in tokens.values())


def test_verified_refinement_writes_what_plain_decoding_writes(report: dict) -> None:
    refinement = report["refinement"]
    assert refinement["identical"] == 1.0
    assert 1 <= refinement["passes"]["verified"] <= refinement["passes"]["plain"] <= LONGEST
    assert set(refinement["seconds"]) == {"verified", "plain"}


def test_memory_is_that_of_a_process_and_of_its_tensors(report: dict) -> None:
    peaks = report["peak_memory_gb"]
    for name in ("policy", "policy_reference_refiner"):
        assert 0 < peaks[name]["tensors"] < peaks[name]["process"]
        assert 0 < peaks[name]["before"] <= peaks[name]["process"]


def test_the_peer_trains_at_the_same_settings(report: dict) -> None:
    settings = report["peer"]["settings"]
    assert settings["beta"] == report["work"]["beta"] == 0.1
    assert settings["per_device_train_batch_size"] == ROWS
    assert settings["num_generations"] == 2
    assert settings["max_completion_length"] == LONGEST
    assert settings["learning_rate"] == report["work"]["lr"] == 0.0


def test_a_profile_is_a_trace_and_a_table_that_adds_up(report: dict, folder) -> None:
    profile = report["profile"]
    assert profile["trace"] == str(folder / "trace.json")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    parts = ["sampling", "scoring", "refining", "forward", "backward", "optimiser", "dense copy"]
    assert list(profile["seconds"]) == [*parts, "other"]
    assert {e["name"] for e in events} >= set(parts)
    assert all(profile["seconds"][part] > 0 for part in parts)


def test_the_table_names_every_number(report: dict) -> None:
    text = table(report)
    for name in ("none", "kl", "dynamic", "trl", "dense", "direct", "generate", *report["ratios"]):
        assert name in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_peer_gets_our_prompts_and_lengths() -> None:
    """Its update is real: one generation and one optimiser step for each step that is timed."""
    steps: list[tuple[float, int]] = []
    task = load_task("dialogue")
    prompts = task.prompts("train")[: SMALL.prompts]
    config = RunConfig.from_dict(SMALL.to_dict() | {"coef": 0.1})
    run_trl(config, task, prompts, 2, lambda seconds, tokens: steps.append((seconds, tokens)))
    assert len(steps) == 2
    assert all(seconds > 0 and ROWS <= tokens <= ROWS * LONGEST for seconds, tokens in steps)


def test_generate_counts_tokens_up_to_eos() -> None:
    """Greedily, its count is that of our own sampling loop."""
    prompts = load_task("dialogue").prompts("train")[:2]
    config = RunConfig.from_dict(SMALL.to_dict() | {"precision": "fp32", "max_new_tokens": 12})
    plain = Generate(config, prompts)
    plain.settings.do_sample = False
    ours = Sampler(load_policy(SMALL.model, "fp32"), "direct").sample(
        prompts, group=2, max_new_tokens=12, temperature=0.0
    )
    assert plain.sample(0) == ours.tokens


def test_without_trl_a_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UserError, match=r"trl is missing; pip install 'rftkit\[trl\]'"):
        bench(SMALL, "trl", progress=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--peer", "nope"], "nope"), (["--rounds", "0"], "rounds"), (["--model", "no/x"], "no/x")],
)
def test_a_mistake_gets_one_line_and_status_2(arguments: list[str], named: str, capsys) -> None:
    try:
        status = main(["bench", *arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert (status, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert named in captured.err


def test_tensor_peak_counts_what_is_alive_at_once() -> None:
    before = torch.ones(1_000_000)  # 4 MB, there already

    def work() -> None:
        a = before + 1
        b = a + 1
        del a
        c = b + 1  # a is gone
        del b, c

    for _ in range(2):  # the second time starts from zero again
        assert tensor_peak_gb(work, torch.device("cpu")) == pytest.approx(0.008, rel=0.01)


def test_the_peer_computes_in_bf16_on_accelerators_alone() -> None:
    assert trl_settings(SMALL, 1, torch.device("cpu"))["bf16"] is False
    assert trl_settings(SMALL, 1, torch.device("cuda"))["bf16"] is True
