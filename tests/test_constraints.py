"""Constraints behind one interface: coefficients, rewards, and what they keep between steps."""

from dataclasses import replace

import pytest
import torch
from small import model_folder
from test_batch import CONFIG, IDS, REF, make_batch
from test_models import nudge

from rftkit import RunConfig, UserError, load_policy
from rftkit.config import CONSTRAINTS as NAMES
from rftkit.constraints import CONSTRAINTS, TUNED, KLConstraint, Pull, make_constraint
from rftkit.models import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    loaded = load_policy(model_folder())
    nudge(loaded)
    return loaded


def test_every_name_has_a_class() -> None:
    assert set(NAMES) == set(CONSTRAINTS)


def test_an_unset_coefficient_is_the_tuned_one(policy: Policy) -> None:
    config = replace(CONFIG, coef=None)
    for name in ("kl", "dynamic", "identity"):
        tuned = TUNED["kl" if name == "kl" else "dynamic"]["dialogue"]
        assert make_constraint(policy, replace(config, constraint=name)).coef == tuned
    assert make_constraint(policy, replace(config, constraint="none")).coef == 0
    plain = replace(config, constraint="kl", task="game-plain")
    assert make_constraint(policy, plain).coef == TUNED["kl"]["game"]
    assert make_constraint(policy, replace(config, constraint="kl", coef=0.2)).coef == 0.2
    k1 = replace(plain, kl_form="k1-reward")
    assert make_constraint(policy, k1).coef == TUNED["k1-reward"]["game"] != TUNED["kl"]["game"]


def test_k1_in_the_reward(policy: Policy) -> None:
    constraint = KLConstraint(policy, replace(CONFIG, kl_form="k1-reward", coef=0.5))
    batch = make_batch(policy, Pull(ref_log_probs=REF))
    rewards = constraint.rewards(torch.ones(4), batch.rollouts, batch.pull)
    pairs = zip(batch.rollouts.log_probs, REF, strict=True)
    expected = torch.tensor([1 - 0.5 * float((p - r).sum()) for p, r in pairs])
    torch.testing.assert_close(rewards, expected)


def test_the_reference_log_probs_are_the_references(policy: Policy) -> None:
    fresh = load_policy(model_folder())
    batch = make_batch(fresh, Pull())  # log-probs of a policy whose adapter does nothing
    ref = KLConstraint(policy, CONFIG).prepare(batch.rollouts, 0).ref_log_probs
    assert ref is not None
    for ours, theirs in zip(ref, batch.rollouts.log_probs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_adaptive_beta_follows_the_kl(policy: Policy) -> None:
    constraint = KLConstraint(policy, replace(CONFIG, kl_target=0.1, coef=1.0))
    constraint.after_step(0, kl=1.0)
    assert constraint.coef > 1
    raised = constraint.coef
    constraint.after_step(1, kl=0.0)
    assert constraint.coef < raised


def test_a_reset_reference_is_the_present_policy_and_is_kept(policy: Policy) -> None:
    config = replace(CONFIG, reference_reset=2)
    constraint = KLConstraint(policy, config)
    rollouts = make_batch(policy, Pull()).rollouts

    def gap(c: KLConstraint) -> float:
        ref = c.prepare(rollouts, 0).ref_log_probs
        assert ref is not None
        return max(float((p - r).abs().max()) for p, r in zip(rollouts.log_probs, ref, strict=True))

    constraint.after_step(0, kl=None)
    assert gap(constraint) > 1e-3
    constraint.after_step(1, kl=None)
    assert gap(constraint) < 1e-4
    again = KLConstraint(policy, config)
    again.load_state(constraint.state())
    assert gap(again) < 1e-4


@pytest.mark.parametrize(
    ("field", "value"),
    [("constraint", "klx"), ("steps", 0), ("seed", -1), ("group", 1), ("lr", float("nan")),
     ("coef", -1.0), ("precision", "int3"), ("temperature", 0.0)],
)  # fmt: skip
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{field}: ") as error:
        RunConfig.from_dict({field: value})
    assert "\n" not in str(error.value)


def test_lengths_of_the_example_agree() -> None:
    assert [len(r) for r in REF] == [len(ids) for ids in IDS]
