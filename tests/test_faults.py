"""Refiners made worse on purpose, and refining only a share: what a dose-response turns."""

from dataclasses import replace

import pytest
import torch
from small import instruct_folder, model_folder
from test_batch import CONFIG, make_batch

from rftkit import RunConfig, Trainer, UserError, load_policy
from rftkit.constraints import DynamicConstraint, Pull
from rftkit.faults import make_refiner
from rftkit.models import Policy
from rftkit.refiner import OnlineRefiner
from rftkit.runs import RunFolder

PROMPT, RESPONSE = "For Ana: small tea, milk, to go.", "Hello, Ana! One small tea, to go."


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(model_folder())


def config(**settings: object) -> RunConfig:
    return RunConfig.from_dict({"model": model_folder(), "max_new_tokens": 16} | settings)


def base_weights(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().float() for p in policy.model.parameters() if not p.requires_grad]


def test_by_default_the_reference_refines(policy: Policy) -> None:
    refiner = make_refiner(policy, config(), "dynamic")
    assert type(refiner) is OnlineRefiner
    assert refiner.policy is policy


def test_noise_disturbs_the_refiner_and_not_the_policy(policy: Policy) -> None:
    before = base_weights(policy)
    damaged = make_refiner(policy, config(refiner_noise=0.5), "dynamic").policy
    assert all(torch.equal(a, b) for a, b in zip(before, base_weights(policy), strict=True))
    sound = load_policy(model_folder(), "fp32")
    for a, b in zip(base_weights(damaged), base_weights(sound), strict=True):
        if a.ndim > 1:
            assert float((a - b).std()) == pytest.approx(0.5 * float(b.std()), rel=0.05)
        else:
            assert torch.equal(a, b)


def test_the_same_seed_is_the_same_damage(policy: Policy) -> None:
    one, two = (make_refiner(policy, config(refiner_noise=0.5), "dynamic") for _ in range(2))
    other = make_refiner(policy, config(refiner_noise=0.5, seed=1), "dynamic")
    pairs = zip(base_weights(one.policy), base_weights(two.policy), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(base_weights(one.policy)[0], base_weights(other.policy)[0])


def test_another_model_refines(policy: Policy) -> None:
    other = model_folder(hidden=32)
    refiner = make_refiner(policy, config(refiner_model=other), "dynamic")
    assert refiner.policy.name == other
    with pytest.raises(UserError, match=r"^refiner_model: .*another tokenizer"):
        make_refiner(policy, config(refiner_model=instruct_folder()), "dynamic")


def test_a_biased_refiner_cuts_and_keeps_the_rest() -> None:
    policy = load_policy("tiny")
    sound = make_refiner(policy, config(model="tiny", max_new_tokens=32), "dynamic")
    biased = make_refiner(
        policy, config(model="tiny", max_new_tokens=32, refiner_cuts=r"Hello, |zzz"), "dynamic"
    )
    before, after = (r.refine([PROMPT], [RESPONSE])[0] for r in (sound, biased))
    assert "Hello, " in before.refined
    assert after.refined == before.refined.replace("Hello, ", "")
    assert after.refined_ids[-1] == policy.tokenizer.eos_token_id
    unbitten = make_refiner(
        policy, config(model="tiny", max_new_tokens=32, refiner_cuts="zzz"), "dynamic"
    )
    assert unbitten.refine([PROMPT], [RESPONSE])[0].refined_ids == before.refined_ids


def test_a_bias_that_cannot_be_is_told(policy: Policy) -> None:
    with pytest.raises(UserError, match=r"^refiner_cuts: .*regular expression"):
        make_refiner(policy, config(refiner_cuts="("), "dynamic")
    with pytest.raises(UserError, match=r"^refiner_cuts: .*identity"):
        make_refiner(policy, config(refiner_cuts="x"), "identity")


@pytest.mark.parametrize(("share", "count"), [(1.0, 4), (0.5, 2), (0.25, 1), (0.01, 1)])
def test_a_share_is_refined_and_learned_from(policy: Policy, share: float, count: int) -> None:
    constraint = DynamicConstraint(policy, replace(CONFIG, refine_share=share))
    rollouts = make_batch(policy, Pull()).rollouts
    pulls = [constraint.prepare(rollouts, seed) for seed in (7, 7, *range(20))]
    for pull in pulls:
        assert pull.refinements is not None
        assert pull.sft_rows == list(pull.refinements) == sorted(pull.sft_rows)
        assert len(pull.sft_rows) == count
        for row, refinement in pull.refinements.items():
            assert refinement.response_ids == rollouts.response_ids[row]
    assert pulls[0].sft_rows == pulls[1].sft_rows
    assert {row for pull in pulls for row in pull.sft_rows} == {0, 1, 2, 3}


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(UserError, match=r"^refine_share: "):
        RunConfig(refine_share=share)


@pytest.mark.parametrize("constraint", ["dynamic", "none"])
def test_samples_show_the_refiner_that_training_learned_from(constraint: str, tmp_path) -> None:
    """A run that learns from none shows what the undisturbed reference would say."""
    settings = {"constraint": constraint, "coef": 1.0, "steps": 1, "prompts": 2, "group": 2,
                "eval_prompts": 8, "samples": 8, "model": "tiny", "refiner_cuts": "[a-z]",
                "max_new_tokens": 24}  # fmt: skip
    if constraint == "none":
        del settings["refiner_cuts"]
    Trainer(RunConfig.from_dict(settings), tmp_path / "run").train(progress=False)
    refined = "".join(sample["refined"] for sample in RunFolder(tmp_path / "run").samples())
    assert any(letter.islower() for letter in refined) == (constraint == "none")
