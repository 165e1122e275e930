"""Training on the embedded model: records, repeatability, resumption, and learning at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small import model_folder

from rftkit import RunConfig, Trainer, UserError, rollout
from rftkit.cli import main
from rftkit.runs import RunFolder
from rftkit.trainer import KEYS

SMALL = {"model": model_folder(), "prompts": 2, "group": 3, "max_new_tokens": 6, "eval_prompts": 4,
         "eval_every": 2, "save_every": 2, "samples": 2, "strength_every": 2}  # fmt: skip
CONTRACT = set("step task_reward gold_reward degenerate kl edit_ratio changed strength entropy "
               "grad_norm tokens seconds".split())  # fmt: skip


def run(out: Path, steps: int = 5, resume: bool = False, **settings) -> list[dict]:
    config = RunConfig.from_dict(SMALL | {"steps": steps} | settings)
    Trainer(config, out, resume=resume).train(progress=False)
    return RunFolder(out).metrics()


def timeless(metrics: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in metrics]


@pytest.mark.parametrize(
    "constraint", ["none", "kl", "dynamic", "identity", "fresh", "random-edit"]
)
def test_a_run_folder_holds_what_the_contract_says(tmp_path: Path, constraint: str) -> None:
    metrics = run(tmp_path, constraint=constraint, coef=1.0)
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4, 5]
    assert all(set(KEYS) <= set(row) for row in metrics)
    assert set(KEYS) >= CONTRACT
    evaluated = [row["step"] for row in metrics if row["gold_reward"] is not None]
    assert evaluated == [0, 2, 4, 5]
    samples = RunFolder(tmp_path).samples()
    assert {frozenset(s) for s in samples} == {
        frozenset(("step", "prompt", "response", "refined", "task_reward", "gold_reward"))
    }
    assert json.loads((tmp_path / "config.json").read_text())["constraint"] == constraint
    names = {p.name for p in (tmp_path / "checkpoint").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "state.safetensors"} <= names
    refines = constraint in ("dynamic", "identity", "fresh", "random-edit")
    assert (metrics[0]["edit_ratio"] is not None) == refines
    # At step 0 the policy is the reference, where the gradient of KL vanishes.
    assert (metrics[2]["strength"] > 0) == (constraint != "none")


def test_one_seed_gives_one_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        timeless(run(tmp_path / name, seed=seed)) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "settings",
    [
        {"constraint": "dynamic"},
        {"constraint": "kl", "kl_target": 0.01},
        {"constraint": "kl", "reference_reset": 1},
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, settings) -> None:
    whole = timeless(run(tmp_path / "whole", coef=1.0, **settings))
    config = RunConfig.from_dict(SMALL | {"steps": 5, "coef": 1.0} | settings)
    for count, _ in enumerate(Trainer(config, tmp_path / "cut").steps()):
        if count == 2:  # one step past the checkpoint of step 2, then gone
            break
    resumed = timeless(run(tmp_path / "cut", resume=True, coef=1.0, **settings))
    assert resumed == whole


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    """It ends as one that was as long from the start, and what else differs is still refused."""
    whole = timeless(run(tmp_path / "whole", coef=1.0, constraint="dynamic"))
    run(tmp_path / "longer", steps=3, coef=1.0, constraint="dynamic")
    with pytest.raises(UserError, match="another steps, lr"):
        run(tmp_path / "longer", resume=True, coef=1.0, constraint="dynamic", lr=0.5)
    longer = timeless(run(tmp_path / "longer", resume=True, coef=1.0, constraint="dynamic"))
    assert longer == whole
    assert RunFolder(tmp_path / "longer").config().steps == 5
    with pytest.raises(UserError, match="another steps"):
        run(tmp_path / "longer", steps=3, resume=True, coef=1.0, constraint="dynamic")


def test_the_command_resumes_by_the_runs_own_settings(tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "run")
    settings = SMALL | {"steps": 2, "constraint": "kl", "coef": 0.2}
    given = [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    assert main(["train", *given, "--out", out]) == 0
    before = RunFolder(Path(out)).config()
    assert main(["train", "--out", out, "--resume", "--steps", "3", "--coef", "0.2"]) == 0
    assert "goes on at step 2 of 3" in capsys.readouterr().err
    assert RunFolder(Path(out)).config() == replace(before, steps=3)
    assert [row["step"] for row in RunFolder(Path(out)).metrics()] == [0, 1, 2, 3]
    assert main(["train", "--out", out, "--resume", "--coef", "0.3"]) == 2
    assert "holds a run with another coef" in capsys.readouterr().err
    assert main(["train", "--out", out, "--resume", "--preset", "gpu_8gb"]) == 2
    told = f"rftkit: preset: {out} holds a run with settings of its own; leave it out\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("sampler", ["dense", "direct"])
def test_checkpointing_changes_memory_and_nothing_else(tmp_path: Path, sampler: str) -> None:
    """A layer that checkpoints reads no cache: sampling and refining must not see it."""
    settings = {"constraint": "dynamic", "coef": 1.0, "sampler": sampler, "model": "tiny",
                "precision": "fp32", "max_new_tokens": 24}  # fmt: skip
    kept, again = (run(tmp_path / str(on), 3, checkpointing=on, **settings) for on in (False, True))
    for a, b in zip(kept, again, strict=True):
        for key in ("task_reward", "kl", "edit_ratio", "refused", "rounds", "constraint_loss"):
            if a.get(key) is not None:
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-4), (a["step"], key)


@pytest.mark.parametrize("constraint", ["none", "kl", "dynamic"])
def test_kl_is_held_out_wherever_it_is_evaluated(constraint: str) -> None:
    """Under every constraint alike, or a KL run could not be compared with another one."""
    settings = {"constraint": constraint, "coef": 1.0, "steps": 3, "lr": 0.01}
    trainer = Trainer(RunConfig.from_dict(SMALL | settings))
    rows = trainer.steps()
    next(rows)
    assert (next(rows)["kl"] is None) == (constraint != "kl")
    heldout = trainer.evaluate(2)["kl"]  # after update 1, before step 2
    assert next(rows)["kl"] == heldout != 0


@pytest.mark.parametrize("other", [{"reference_reset": 1}, {"temperature": 0.7}])
def test_a_kl_of_another_kind_is_left_out(other: dict) -> None:
    """From a reset reference, or at another temperature, it is not what evaluations measure."""
    settings = {"constraint": "kl", "coef": 1.0, "steps": 3, "lr": 0.01}
    rows = list(Trainer(RunConfig.from_dict(SMALL | settings | other)).steps())
    assert [row["kl"] is None for row in rows] == [False, True, False, False]


def test_the_coefficient_of_a_step_is_the_one_it_trained_with() -> None:
    settings = {"constraint": "kl", "coef": 1.0, "kl_target": 0.05, "steps": 3, "lr": 0.01}
    coefs = [row["coef"] for row in Trainer(RunConfig.from_dict(SMALL | settings)).steps()]
    assert coefs[0] == 1.0
    assert coefs[1] != 1.0


def test_many_held_out_prompts_are_answered_in_parts(tmp_path: Path, monkeypatch) -> None:
    asked: list[int] = []
    sample = rollout.Sampler.sample

    def counted(self: rollout.Sampler, prompts, **settings) -> rollout.Rollouts:
        asked.append(len(prompts) * settings["group"])
        return sample(self, prompts, **settings)

    monkeypatch.setattr(rollout.Sampler, "sample", counted)
    monkeypatch.setattr(rollout, "EVAL_TOKENS", 1)
    trainer = Trainer(RunConfig.from_dict(SMALL | {"eval_prompts": 8}))
    prompts = trainer.heldout_prompts[:8]
    answers = trainer.sampler.answer(prompts, rows=6, max_new_tokens=6, seed=1)
    assert asked == [6, 2]
    assert [p.text for p in answers.prompts] == [p.text for p in prompts]
    assert len(answers) == len(answers.log_probs) == 8
    assert 0 <= trainer.evaluate(0)["degenerate"] <= 1
    assert asked == [6, 2, 6, 2]  # a step has 2 × 3 rollouts


def test_a_first_step_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise UserError("no reward today")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn", fails)
        with pytest.raises(UserError, match="no reward today; stopped before the first step"):
            run(tmp_path / "run", seed=1)
    run(tmp_path / "run", seed=2)
    run(tmp_path / "fresh", seed=2)
    assert RunFolder(tmp_path / "run").samples() == RunFolder(tmp_path / "fresh").samples()


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    whole = timeless(run(tmp_path))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "task_re')
    assert timeless(RunFolder(tmp_path).metrics()) == whole


def test_a_run_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    with pytest.raises(UserError, match="holds a run already; add --resume"):
        run(tmp_path, steps=1)
    with pytest.raises(UserError, match="another lr"):
        run(tmp_path, steps=1, lr=0.5, resume=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "file" / "run", steps=1)


def test_several_updates_a_batch_use_the_clip(tmp_path: Path) -> None:
    metrics = run(tmp_path, updates=4, lr=0.05, clip_high=0.01, clip_low=0.01, constraint="none")
    assert max(row["clip_fraction"] for row in metrics[1:-1]) > 0
    single = run(tmp_path / "single", lr=0.05, clip_high=0.01, clip_low=0.01, constraint="none")
    assert max(row["clip_fraction"] for row in single[:-1]) == 0


@pytest.mark.parametrize("overlong", ["filter", "penalty"])
def test_overlong_responses_can_be_left_out_or_penalised(tmp_path: Path, overlong: str) -> None:
    assert len(run(tmp_path, steps=2, overlong=overlong, resample=1, constraint="none")) == 3


def test_training_learns(tmp_path: Path) -> None:
    """The embedded model under the dynamic constraint: better within 15 steps, by any measure."""
    config = RunConfig(steps=15, eval_every=15, constraint="dynamic")
    metrics = Trainer(config).train(progress=False)
    first, last = metrics[0], metrics[-1]
    assert last["gold_reward"] > first["gold_reward"] + 0.1
    assert last["degenerate"] <= first["degenerate"]
