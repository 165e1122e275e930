"""The toy policy, and what the kit says about constraints, as exact facts about it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import cast

import pytest
import torch
from torch import Tensor

from rftkit.objectives import aggregate_tokens, sft_loss
from rftkit.toy import (
    Constraint,
    History,
    Scene,
    ToyPolicy,
    boltzmann,
    cafe,
    constraint_loss,
    expected_sft_loss,
    kl,
    push_forward,
    refiner_matrix,
    train,
)


def random_policy(seed: int, letters: str = "ct", max_tokens: int = 3) -> ToyPolicy:
    rng = torch.Generator().manual_seed(seed)
    shape = ToyPolicy(letters, max_tokens).logits.shape
    return ToyPolicy(letters, max_tokens, torch.randn(shape, generator=rng, dtype=torch.float64))


def gradient(loss: Tensor, policy: ToyPolicy) -> Tensor:
    return torch.autograd.grad(loss, policy.logits, retain_graph=True)[0]


def close(actual: Tensor, expected: Tensor | float, atol: float = 1e-12) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach(), wanted.detach(), rtol=0, atol=atol)


def drop_repeats(y: str) -> str:
    return "".join(dict.fromkeys(y.rstrip("."))) + "."


def response_losses(policy: ToyPolicy, mask: Tensor | None = None) -> Tensor:
    """The kit's SFT loss of each response alone, as a sum over its tokens, [n]."""
    logp = policy.token_log_probs()
    mask = policy.mask if mask is None else mask
    return torch.stack([sft_loss(logp[[i]], mask[[i]], total=1) for i in range(len(logp))])


def response_gradients(policy: ToyPolicy) -> Tensor:
    """Gradient of each response's SFT loss, [n, parameters]."""
    losses = response_losses(policy)
    return torch.stack([gradient(loss, policy).flatten() for loss in losses])


POLICIES = [random_policy(seed) for seed in range(3)] + [cafe().reference]


# The toy itself


def test_it_enumerates_every_response_and_nothing_else() -> None:
    policy = ToyPolicy("ab", 2)
    assert policy.sequences() == [".", "a.", "b.", "aa", "ab", "ba", "bb"]
    assert policy.lengths().tolist() == [1, 2, 2, 2, 2, 2, 2]
    close(policy.probs(), torch.tensor([3, 1, 1, 1, 1, 1, 1]).double() / 9)  # each token has 1/3
    assert len(ToyPolicy("abc", 3).sequences()) == 1 + 3 + 9 + 27


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_probabilities_are_products_of_next_token_probabilities(temperature: float) -> None:
    policy = random_policy(1)
    table = (policy.logits / temperature).softmax(-1)
    start, after_c, after_ct = (policy.prefixes.index(p) for p in ("", "c", "ct"))
    probs = policy.log_probs(temperature).exp()
    close(probs.sum(), 1.0)
    ys = policy.sequences()
    c, t, eos = 0, 1, 2
    close(probs[ys.index("c.")], table[start, c] * table[after_c, eos])
    close(probs[ys.index("ctc")], table[start, c] * table[after_c, t] * table[after_ct, c])


def test_any_distribution_can_be_set() -> None:
    wanted = torch.rand(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted /= wanted.sum()
    close(ToyPolicy().with_probs(wanted).probs(), wanted)
    with pytest.raises(ValueError, match="above 0"):
        ToyPolicy().with_probs(torch.zeros(15).double())


def test_copies_train_apart() -> None:
    policy = random_policy(0)
    other = policy.copy()
    with torch.no_grad():
        other.logits += torch.randn(7, 3)
    assert (policy.probs() - other.probs()).abs().max() > 0.01
    close(policy.probs(), random_policy(0).probs())


def test_a_refiner_must_write_responses() -> None:
    matrix = refiner_matrix(ToyPolicy("ct", 3), drop_repeats)
    ys = ToyPolicy("ct", 3).sequences()
    assert matrix.sum(-1).eq(1).all()
    assert matrix[ys.index("ctt"), ys.index("ct.")] == 1
    with pytest.raises(ValueError, match="'cc' into 'c!'"):
        refiner_matrix(ToyPolicy("ct", 2), lambda y: "c!" if y == "cc" else y)


# Fact 1: the gradient of the expected SFT loss is that of KL(push-forward || policy).


def stochastic_refiner(n: int) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(n, n, generator=rng, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["rule", "stochastic"])
def test_sft_toward_refinements_is_kl_from_the_push_forward(policy: ToyPolicy, kind: str) -> None:
    n = len(policy.sequences())
    refiner = refiner_matrix(policy, drop_repeats) if kind == "rule" else stochastic_refiner(n)
    q = push_forward(policy, refiner)
    close(q.sum(), 1.0)
    by_loss = (q * response_losses(policy)).sum()
    close(expected_sft_loss(policy, refiner), by_loss)
    exact = gradient(kl(q, policy.probs()), policy)
    close(gradient(by_loss, policy), exact)
    close(gradient(expected_sft_loss(policy, refiner), policy), exact)
    assert exact.abs().max() > 0.01
    # The losses differ by the entropy of q, which has no gradient.
    close(by_loss - kl(q, policy.probs()), -torch.special.xlogy(q, q).sum())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_refiner_that_changes_nothing_pulls_nowhere_on_average(policy: ToyPolicy) -> None:
    identity = torch.eye(len(policy.sequences()), dtype=torch.float64)
    assert gradient(expected_sft_loss(policy, identity), policy).abs().max() < 1e-12
    close(policy.probs() @ response_gradients(policy), torch.zeros(policy.logits.numel()))


def test_only_variance_is_left_and_it_grows_with_lambda_squared() -> None:
    policy = POLICIES[0]
    probs, grads = policy.probs().detach(), response_gradients(policy)
    variance = {c: probs @ (c * grads).square().sum(-1) for c in (1.0, 3.0)}
    assert variance[1.0] > 0.1
    close(variance[3.0], 9 * variance[1.0])

    rng = torch.Generator().manual_seed(0)
    n = 20_000
    sample = grads[torch.multinomial(probs, n, replacement=True, generator=rng)]
    squares = sample.square().sum(-1)
    assert (squares.mean() - variance[1.0]).abs() < 5 * squares.std() / n**0.5
    # The mean of n draws has variance / n left, in every direction together.
    assert sample.mean(0).square().sum() < 5 * variance[1.0] / n
    assert sample.mean(0).square().sum() > 0


# Fact 2: unchanged responses are neutral only when all are unchanged.


def test_unchanged_responses_reinforce_what_the_refiner_accepts() -> None:
    policy = POLICIES[0]
    refiner = refiner_matrix(policy, drop_repeats)
    accepted = refiner.diagonal() == 1
    probs, losses = policy.probs().detach(), response_losses(policy)
    unchanged = gradient((probs * losses)[accepted].sum(), policy)
    # Their pull raises the probability that the refiner accepts the response, which is not 1.
    close(unchanged, -gradient(policy.probs()[accepted].sum(), policy))
    assert unchanged.abs().max() > 0.01

    # Leaving them out is thus another objective than the SFT loss on all.
    q_changed = (probs * ~accepted) @ refiner
    masked = gradient((q_changed * losses).sum(), policy)
    everything = gradient(expected_sft_loss(policy, refiner), policy)
    close(masked + unchanged, everything)
    assert torch.nn.functional.cosine_similarity(masked.flatten(), everything.flatten(), 0) < 0.99


# Fact 3: with a refiner that changes nothing, each of these still pulls somewhere.


def per_sequence_mean(policy: ToyPolicy) -> Tensor:
    logp = policy.token_log_probs()
    return aggregate_tokens(-logp * policy.probs().detach()[:, None], policy.mask, "sequence", 1)


def eos_missing_in_the_loss(policy: ToyPolicy) -> Tensor:
    mask = policy.mask & (policy.ids != len(policy.letters))
    return (policy.probs().detach() * response_losses(policy, mask)).sum()


def sampled_at_another_temperature(policy: ToyPolicy) -> Tensor:
    return (policy.log_probs(0.7).exp().detach() * response_losses(policy)).sum()


def filtered(policy: ToyPolicy) -> Tensor:
    finished = torch.tensor([y.endswith(".") for y in policy.sequences()])
    probs = policy.probs().detach() * finished
    return (probs / probs.sum() * response_losses(policy)).sum()


def second_epoch(policy: ToyPolicy) -> Tensor:
    sampled_from = policy.with_probs(boltzmann(policy.probs().detach(), -policy.lengths(), 2.0))
    return (sampled_from.probs().detach() * response_losses(policy)).sum()


def lost_in_decode_and_encode(policy: ToyPolicy) -> Tensor:
    # As if "cc" decoded to a text that the tokenizer encodes as "t".
    merged = refiner_matrix(policy, lambda y: "t." if y == "cc." else y)
    return expected_sft_loss(policy, merged)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "loss",
    [
        per_sequence_mean,
        eos_missing_in_the_loss,
        sampled_at_another_temperature,
        filtered,
        second_epoch,
        lost_in_decode_and_encode,
    ],
)
def test_what_breaks_the_zero_pull(policy: ToyPolicy, loss: Callable[[ToyPolicy], Tensor]) -> None:
    assert gradient(loss(policy), policy).norm() > 0.01


def test_a_loss_at_the_sampling_temperature_has_zero_pull_again() -> None:
    policy = POLICIES[0]
    logp = policy.log_probs(0.7)
    assert gradient(-(logp.exp().detach() * logp).sum(), policy).abs().max() < 1e-12


def test_a_token_mean_over_few_responses_still_pulls_toward_short_ones() -> None:
    """Sum and token count of one batch vary together; the bias falls as 1 / responses."""
    policy = random_policy(0, letters="c", max_tokens=2)
    logp, mask, n = policy.token_log_probs(), policy.mask, len(policy.sequences())

    def expected(size: int, total: float | None) -> Tensor:
        batches = [list(b) for b in product(range(n), repeat=size)]
        losses = torch.stack([sft_loss(logp[b], mask[b], total) for b in batches])
        chances = torch.stack([policy.probs().detach()[b].prod() for b in batches])
        return gradient((chances * losses).sum(), policy)

    pulls = {size: expected(size, None) for size in (1, 2, 4, 6)}
    assert pulls[1].norm() > 0.01
    assert 0.4 < pulls[4].norm() / pulls[2].norm() < 0.6
    assert 0.6 < pulls[6].norm() / pulls[4].norm() < 0.72
    mean_length = gradient((policy.probs() * policy.lengths()).sum(), policy)
    assert all((pull * mean_length).sum() > 0 for pull in pulls.values())  # descent shortens
    assert expected(2, total=3.0).abs().max() < 1e-12


# Fact 4: a refiner sees form, not reward.


def test_a_well_formed_hack_passes_unchanged() -> None:
    scene = cafe()
    ys = scene.reference.sequences()
    hacked = scene.task_rewards + torch.tensor([3.0 * (y == "t.") for y in ys]).double()
    history = train(scene._replace(task_rewards=hacked), "dynamic", 3.0)
    assert history.probs[-1][ys.index("t.")] > 0.95  # gold reward 0.5 of 1.5


# Fact 5: the KL-regularised optimum, and the pull that it leaves on good deviations.


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_boltzmann_distribution_is_the_optimum(beta: float) -> None:
    scene = cafe()
    reference = scene.reference.probs().detach()
    optimum = boltzmann(reference, scene.task_rewards, beta)
    weights = reference * (scene.task_rewards / beta).exp()
    close(optimum, weights / weights.sum())

    def objective(policy: ToyPolicy) -> Tensor:
        p = policy.probs()
        return (p * scene.task_rewards).sum() - beta * kl(p, reference)

    best = scene.reference.with_probs(optimum)
    assert gradient(objective(best), best).abs().max() < 1e-12
    assert gradient(objective(scene.reference), scene.reference).norm() > 0.1
    for seed in range(5):
        assert objective(random_policy(seed)) < objective(best)


def test_kl_pulls_on_good_deviations_and_the_dynamic_constraint_does_not() -> None:
    """Of responses that the refiner keeps, the best one made likely; flaws ever rarer."""
    scene = cafe()
    good = scene.reference.sequences().index("ct.")
    flawed = scene.refiner.diagonal() == 0
    kl_pulls, dynamic_pulls = [], []
    for flaws in (1e-2, 1e-4, 1e-6):
        probs = scene.reference.probs().detach().clone()
        probs[good] = 20 * probs[good]
        probs[flawed] *= flaws * probs[~flawed].sum() / probs[flawed].sum()
        policy = scene.reference.with_probs(probs / probs.sum())
        static = gradient(constraint_loss(scene, policy, "kl", 1.0), policy)
        dynamic = gradient(constraint_loss(scene, policy, "dynamic", 1.0), policy)
        kl_pulls.append(static.norm().item())
        dynamic_pulls.append(dynamic.norm().item())
        # Descending KL takes probability from the good response.
        assert (static * gradient(policy.probs()[good], policy)).sum() > 0.01
    assert min(kl_pulls) > 0.1
    # The dynamic pull is in proportion to what there is to refine, and gone with it.
    assert dynamic_pulls[1] == pytest.approx(dynamic_pulls[0] / 100, rel=0.1)
    assert dynamic_pulls[2] < 1e-5
    accepting = scene._replace(refiner=torch.eye(len(flawed), dtype=torch.float64))
    assert gradient(constraint_loss(accepting, policy, "dynamic", 9.0), policy).norm() < 1e-12


# Training without noise: the project's figure in 15 bars


@pytest.fixture(scope="module")
def scene() -> Scene:
    return cafe()


def end(scene: Scene, history: History) -> tuple[float, float]:
    """Gold reward and degenerate share at the end."""
    probs = history.probs[-1]
    return (probs @ scene.gold_rewards).item(), probs[scene.refiner.diagonal() == 0].sum().item()


def test_unconstrained_collapses_kl_stalls_dynamic_climbs(scene: Scene) -> None:
    start = (scene.reference.probs() @ scene.gold_rewards).item()
    assert 0.4 < start / 1.5 < 0.5
    gold, degenerate = end(scene, train(scene, "none"))
    assert gold < 0.05
    assert degenerate > 0.95
    for beta in (0.1, 0.2, 0.3, 0.5, 1.0, 2.0):
        gold, degenerate = end(scene, train(scene, "kl", beta))
        assert gold < 0.6 * 1.5
        assert degenerate > 0.1
    for coef in (1.0, 3.0):
        gold, degenerate = end(scene, train(scene, "dynamic", coef))
        assert gold > 0.97 * 1.5
        assert degenerate < 0.01


def test_the_dynamic_pull_fades_while_kl_keeps_pulling(scene: Scene) -> None:
    dynamic, kl_run = train(scene, "dynamic", 3.0), train(scene, "kl", 0.5)
    assert dynamic.pull[-1] < dynamic.pull[0] / 20
    assert kl_run.pull[-1] > kl_run.pull.max() / 2
    # Settled: task reward and constraint cancel, whatever the constraint.
    assert kl_run.strength[-1].item() == pytest.approx(0.5, abs=0.01)


def test_kl_training_ends_at_the_boltzmann_distribution(scene: Scene) -> None:
    reference = scene.reference.probs().detach()
    history = train(scene, "kl", 1.0, steps=400)
    close(history.probs[-1], boltzmann(reference, scene.task_rewards, 1.0), atol=2e-3)
    close(history.probs[0], reference)
    assert history.probs.shape == (401, 15)


def test_unknown_constraints_are_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match="none, kl or dynamic"):
        constraint_loss(scene, scene.reference, cast(Constraint, "fresh"), 1.0)
