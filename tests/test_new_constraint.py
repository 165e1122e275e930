"""A constraint is one class and one line in the registry: a new one is registered and trained."""

from pathlib import Path

import pytest
import torch

import rftkit
from rftkit.config import CONSTRAINTS
from rftkit.constraints import NoConstraint, Pull
from rftkit.plots import curves
from rftkit.rollout import Rollouts
from rftkit.runs import RunFolder

SMALL = {"steps": 12, "prompts": 4, "group": 8, "eval_every": 6, "eval_prompts": 8, "lr": 2e-3}


class LengthPenalty(NoConstraint):
    """Every token costs so much that nothing else counts."""

    name = "length"

    def rewards(self, rewards: torch.Tensor, rollouts: Rollouts, pull: Pull) -> torch.Tensor:
        return rewards - 100.0 * torch.tensor([float(len(ids)) for ids in rollouts.response_ids])


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTRAINTS, "length", "test_new_constraint:LengthPenalty")


@pytest.mark.usefixtures("_registered")
def test_one_trains_under_it_and_draws_it_beside_the_others(tmp_path: Path) -> None:
    runs, lengths = {}, {}
    for name in ("none", "length"):
        config = rftkit.RunConfig.from_dict(SMALL | {"constraint": name})
        metrics = rftkit.Trainer(config, tmp_path / name).train(progress=False)
        lengths[name] = metrics[-2]["length"] / metrics[0]["length"]
        runs[name] = [RunFolder(tmp_path / name)]
    assert lengths["length"] < 0.8 < lengths["none"]
    figure = curves(runs, "dialogue", 1.5)
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colours)) == len(colours) > 1


def test_a_name_without_a_line_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(rftkit.UserError, match="constraint: 'dynamc' is unknown; choose of none, "):
        rftkit.compare("dialogue", ("dynamc",), out=tmp_path)
    with pytest.raises(rftkit.UserError, match="constraint: 'length' is unknown"):
        rftkit.RunConfig(constraint="length")
