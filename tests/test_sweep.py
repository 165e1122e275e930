"""A sweep names the coefficient with the highest mean gold reward."""

import json
from dataclasses import replace
from statistics import fmean

import pytest
from small import model_folder

from rftkit import RunConfig, UserError
from rftkit.errors import DivergedError
from rftkit.sweep import sweep, table

SMALL = RunConfig(
    model=model_folder(), constraint="kl", steps=2, prompts=2, group=2, max_new_tokens=4,
    eval_prompts=4, eval_every=1,
)  # fmt: skip


def test_sweep(tmp_path) -> None:
    found = sweep(SMALL, [0.1, 1.0], [5, 6], out=tmp_path, progress=False)
    assert found == json.loads((tmp_path / "sweep.json").read_text())
    assert [(r["coef"], r["seed"]) for r in found["runs"]] == [
        (0.1, 5),
        (0.1, 6),
        (1.0, 5),
        (1.0, 6),
    ]
    means = {
        c: fmean(r["gold_reward"] for r in found["runs"] if r["coef"] == c) for c in (0.1, 1.0)
    }
    assert found["best"] == max(means, key=means.__getitem__)
    assert "best coefficient" in table(found)
    assert (tmp_path / "kl-0.1-seed5" / "metrics.jsonl").exists()


def test_a_seed_given_twice_runs_once(tmp_path) -> None:
    found = sweep(SMALL, [0.1], [5, 5], out=tmp_path, progress=False)
    assert found["seeds"] == [5]
    assert len(found["runs"]) == 1


def test_a_coefficient_with_a_run_that_diverged_is_the_worst(tmp_path) -> None:
    config = replace(SMALL, precision="fp32", patience=1)
    found = sweep(config, [0.1, 1e39], [5], out=tmp_path / "a", progress=False)
    assert found["best"] == 0.1
    assert found["gold_reward"]["1e+39"] is None
    assert found == json.loads((tmp_path / "a/sweep.json").read_text())
    good, bad = found["runs"]
    assert good["gold_reward"] is not None
    assert "diverged" not in good
    assert bad["gold_reward"] is None
    told = f"kl, seed 5, in {tmp_path / 'a/kl-1e+39-seed5'}: stopped at step 0"
    assert bad["diverged"].startswith(told)
    assert f"diverged: {told}" in table(found)
    with pytest.raises(DivergedError, match=r"every coefficient diverged: kl, seed 5, in "):
        sweep(config, [1e39], [5], out=tmp_path / "b", progress=False)


def test_a_constraint_without_coefficient_is_told_so(tmp_path) -> None:
    with pytest.raises(UserError, match="constraint: none has no weight to tune"):
        sweep(RunConfig(constraint="none"), out=tmp_path)
    with pytest.raises(UserError, match="coefs: give some for constraint 'fresh'"):
        sweep(RunConfig(constraint="fresh"), out=tmp_path)
