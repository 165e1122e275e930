"""A sweep names the coefficient with the highest mean gold reward."""

import json
from statistics import fmean

import pytest
from small import model_folder

from rftkit import RunConfig, UserError
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


def test_a_constraint_without_coefficient_is_told_so(tmp_path) -> None:
    with pytest.raises(UserError, match="coefs"):
        sweep(RunConfig(constraint="none"), out=tmp_path)
