"""What each KL estimator's value and gradient are in expectation: fact 6, by enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rftkit.objectives import (
    KL_ESTIMATORS,
    KLKind,
    adaptive_beta,
    k1_penalised_rewards,
    kl_k1,
    kl_k2,
    kl_k3,
    policy_gradient_loss,
)
from rftkit.toy import ToyPolicy, kl


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=0, atol=1e-12)


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


# KL estimators by enumeration: y ~ policy, the sampling not differentiated


@pytest.fixture
def pair() -> tuple[ToyPolicy, ToyPolicy]:
    rng = torch.Generator().manual_seed(0)
    policy, reference = (
        ToyPolicy("ct", 3, torch.randn(7, 3, generator=rng, dtype=torch.float64)) for _ in range(2)
    )
    return policy, reference


def on_policy_mean(
    policy: ToyPolicy, reference: ToyPolicy, kind: KLKind, per_token: bool
) -> Tensor:
    """The estimator's mean over all responses, as its expectation under sampling."""
    if per_token:
        logp, ref_logp = policy.token_log_probs(), reference.token_log_probs()
        values = KL_ESTIMATORS[kind](logp, ref_logp, policy.mask).sum(-1)
    else:
        values = KL_ESTIMATORS[kind](policy.log_probs(), reference.log_probs(), None)
    return (policy.probs().detach() * values).sum()


def next_token_kl(policy: ToyPolicy, reference: ToyPolicy, reverse: bool) -> Tensor:
    """Sum over prefixes of (detached probability of visiting it) * KL of the next token."""
    p, q = policy.logits.softmax(-1), reference.logits.softmax(-1)
    visits = []
    for prefix in policy.prefixes:
        through = [y.startswith(prefix) for y in policy.sequences()]
        visits.append(policy.probs().detach()[torch.tensor(through)].sum())
    terms = [v * (kl(b, a) if reverse else kl(a, b)) for v, a, b in zip(visits, p, q, strict=True)]
    return torch.stack(terms).sum()


@pytest.mark.parametrize("per_token", [False, True])
def test_k1_and_k3_are_unbiased_and_k2_is_not(
    pair: tuple[ToyPolicy, ToyPolicy], per_token: bool
) -> None:
    policy, reference = pair
    exact = kl(policy.probs(), reference.probs())
    close(on_policy_mean(*pair, "k1", per_token), exact)
    if not per_token:
        close(on_policy_mean(*pair, "k3", per_token), exact)
    else:  # the sum of k3 over tokens has the mean of the sum of next-token KLs: the same number
        close(on_policy_mean(*pair, "k3", per_token), next_token_kl(*pair, reverse=False))
        close(next_token_kl(*pair, reverse=False), exact)
    assert (on_policy_mean(*pair, "k2", per_token) - exact).abs() > 0.01
    assert kl_k1(policy.log_probs(), reference.log_probs()).min() < 0


def test_expected_gradients_on_whole_responses(pair: tuple[ToyPolicy, ToyPolicy]) -> None:
    policy, reference = pair
    grads = {k: gradient(on_policy_mean(*pair, k, False), policy.logits) for k in KL_ESTIMATORS}
    forward = gradient(kl(policy.probs(), reference.probs().detach()), policy.logits)
    reverse = gradient(kl(reference.probs().detach(), policy.probs()), policy.logits)
    assert (forward - reverse).abs().max() > 0.01
    close(grads["k1"], torch.zeros(7, 3).double())
    close(grads["k2"], forward)
    close(grads["k3"], reverse)


def test_expected_gradients_per_token(pair: tuple[ToyPolicy, ToyPolicy]) -> None:
    policy, reference = pair
    grads = {k: gradient(on_policy_mean(*pair, k, True), policy.logits) for k in KL_ESTIMATORS}
    close(grads["k1"], torch.zeros(7, 3).double())
    close(grads["k2"], gradient(next_token_kl(*pair, reverse=False), policy.logits))
    close(grads["k3"], gradient(next_token_kl(*pair, reverse=True), policy.logits))
    # What a token does to later prefixes is missing from k2 per token.
    whole = gradient(kl(policy.probs(), reference.probs().detach()), policy.logits)
    assert (grads["k2"] - whole).abs().max() > 0.01


def test_k1_in_the_reward_has_the_gradient_of_kl(pair: tuple[ToyPolicy, ToyPolicy]) -> None:
    policy, reference = pair
    logp, mask, probs = policy.token_log_probs(), policy.mask, policy.probs().detach()
    rewards = torch.arange(len(probs)).double()
    penalised = k1_penalised_rewards(rewards, logp, reference.token_log_probs(), mask, beta=0.3)
    # Weighted by their probabilities, all responses at once are the expectation of one.
    loss, _ = policy_gradient_loss(
        logp, logp.detach(), probs * penalised, mask, 0.2, 0.3, total=1.0
    )
    exact = 0.3 * kl(policy.probs(), reference.probs().detach()) - (policy.probs() * rewards).sum()
    close(gradient(loss, policy.logits), gradient(exact, policy.logits))


def test_sampled_gradients_agree(pair: tuple[ToyPolicy, ToyPolicy]) -> None:
    policy, reference = pair
    probs = policy.probs().detach()
    rng = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(probs, 20_000, replacement=True, generator=rng)
    wanted = {
        "k1": torch.zeros(21).double(),
        "k2": gradient(kl(policy.probs(), reference.probs().detach()), policy.logits).flatten(),
        "k3": gradient(kl(reference.probs().detach(), policy.probs()), policy.logits).flatten(),
    }
    for kind, estimator in KL_ESTIMATORS.items():
        values = estimator(policy.log_probs(), reference.log_probs(), None)
        each = torch.stack([gradient(value, policy.logits).flatten() for value in values])
        sample = each[drawn]
        error = (sample.mean(0) - wanted[kind]).abs()
        assert (error < 5 * sample.std(0) / len(drawn) ** 0.5 + 1e-9).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-500, 0), st.floats(-500, 0))
def test_k2_and_k3_are_never_negative(logp: float, ref_logp: float) -> None:
    for estimator in (kl_k2, kl_k3):
        value = estimator(*torch.tensor([logp, ref_logp], dtype=torch.float64))
        assert value >= -1e-12
        assert value.isfinite()


def test_a_collapsed_policy_keeps_its_pull() -> None:
    """Where the policy is sure and the reference finds it absurd, k3 must not be cut flat."""
    logp = torch.zeros(2, requires_grad=True)
    loss = kl_k3(logp, torch.tensor([-50.0, -1000.0])).sum()
    torch.testing.assert_close(gradient(loss, logp), torch.ones(2))
    assert kl_k3(torch.tensor(-1000.0), torch.tensor(0.0)).isfinite()


def test_the_reference_gets_no_gradient() -> None:
    reference = torch.tensor([-2.0]).requires_grad_()
    for estimator in KL_ESTIMATORS.values():
        assert not estimator(torch.tensor([-1.0]), reference, None).requires_grad


def test_adaptive_beta() -> None:
    assert adaptive_beta(0.5, kl=4.0, target=4.0) == 0.5
    assert adaptive_beta(0.5, kl=4.4, target=4.0) == pytest.approx(0.5 * 1.01)  # error 0.1
    assert adaptive_beta(0.5, kl=400.0, target=4.0) == pytest.approx(0.5 * 1.02)  # cut at 0.2
    assert adaptive_beta(0.5, kl=-9.0, target=4.0) == pytest.approx(0.5 * 0.98)
    assert adaptive_beta(1.0, kl=6.0, target=4.0, gain=1.0, clip=1.0) == pytest.approx(1.5)
    for bad_kl, bad_target in ((math.nan, 1.0), (1.0, 0.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="finite kl"):
            adaptive_beta(0.5, bad_kl, bad_target)
