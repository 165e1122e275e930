"""Each function of objectives.py against arithmetic by hand, a plain loop, or exact enumeration."""

from __future__ import annotations

import math
from typing import cast, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rftkit.objectives import (
    KL_ESTIMATORS,
    AdvantageKind,
    Aggregate,
    aggregate_tokens,
    group_advantages,
    k1_penalised_rewards,
    kl_k1,
    kl_k2,
    kl_k3,
    normaliser,
    overlong_filter,
    overlong_penalty,
    policy_gradient_loss,
    sft_loss,
    token_entropy,
    token_log_probs,
    truncated_weights,
    zero_variance,
)
from rftkit.toy import FOUR_ROLLOUTS

AGGREGATES = get_args(Aggregate)
KINDS = get_args(AdvantageKind)
FAST = settings(max_examples=30, deadline=None, derandomize=True)
LN2 = math.log(2)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: object, atol: float = 1e-12) -> None:
    wanted = expected if isinstance(expected, Tensor) else tensor(expected)
    torch.testing.assert_close(actual.detach(), wanted.detach().double(), rtol=0, atol=atol)


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(loss, parameter)[0]


# Four rollouts by hand: the numbers that the notebooks work out.
#
# Response:          c .        ct .           t .        tt .
# policy now         1/2 1/4    1/2 1/4 1/4    1/4 1/2    1/4 1/4 1/2
# when sampled       1/4 1/2    1/4 1/4 1/4    1/2 1/4    1/2 1/4 1/4
# ratio               2  1/2     2   1   1     1/2  2     1/2  1   2
# reference          1/4 1/2    1/4 1/4 1/4    1/4 1/2    1/4 1/8 1/4
# reward             1          1              0          0


@pytest.fixture
def logp() -> Tensor:
    return FOUR_ROLLOUTS.probs.log().requires_grad_()


MASK = FOUR_ROLLOUTS.mask
OLD_LOGP = FOUR_ROLLOUTS.old_probs.log()
REF_LOGP = FOUR_ROLLOUTS.ref_probs.log()
GRPO = tensor([1, 1, -1, -1])


def test_advantages_by_hand() -> None:
    # Mean 1/2, deviations ±1/2, population standard deviation 1/2.
    close(group_advantages(FOUR_ROLLOUTS.rewards, "grpo"), [[1, 1, -1, -1]])
    close(group_advantages(FOUR_ROLLOUTS.rewards, "dr_grpo"), [[0.5, 0.5, -0.5, -0.5]])
    # The others of a 1 have mean 1/3, those of a 0 have 2/3.
    close(group_advantages(FOUR_ROLLOUTS.rewards, "rloo"), [[2 / 3, 2 / 3, -2 / 3, -2 / 3]])


def test_the_four_rollouts_can_come_from_one_policy_each() -> None:
    for table in (FOUR_ROLLOUTS.probs, FOUR_ROLLOUTS.old_probs, FOUR_ROLLOUTS.ref_probs):
        following: dict[str, dict[str, float]] = {}
        for response, row in zip(FOUR_ROLLOUTS.responses, table.tolist(), strict=True):
            for t, token in enumerate(response):
                known = following.setdefault(response[:t], {})
                assert known.setdefault(token, row[t]) == row[t]
        assert all(sum(after.values()) <= 1 for after in following.values())


def test_on_policy_loss_by_hand(logp: Tensor) -> None:
    # Every ratio is 1: the tokens' advantages sum to 2 + 3 - 2 - 3 = 0. The gradient is not 0,
    # for old_logp carries none.
    loss, clip_fraction = policy_gradient_loss(logp, logp, GRPO, MASK, 0.25, 0.5)
    close(loss, 0)
    close(clip_fraction, 0)
    # d loss / d logp = -A / 10
    down, up = -1 / 10, 1 / 10
    close(gradient(loss, logp), [[down, down, 0], [down] * 3, [up, up, 0], [up] * 3])


# Clipped to [3/4, 3/2], min(ratio A, clipped A) by token:
#   first   min(2, 3/2) = 3/2 clipped, min(1/2, 3/4) = 1/2
#   second  3/2 clipped, 1, 1
#   third   min(-1/2, -3/4) = -3/4 clipped, min(-2, -3/2) = -2
#   fourth  -3/4 clipped, -1, -2
# A free token's gradient is -A ratio / normaliser, a clipped one's is 0.


@pytest.mark.parametrize(
    ("aggregate", "loss", "grad"),
    [
        # (2 + 7/2 - 11/4 - 15/4) / 10 tokens = -1/10
        (
            "token",
            1 / 10,
            [[0, -1 / 20, 0], [0, -1 / 10, -1 / 10], [0, 1 / 5, 0], [0, 1 / 10, 1 / 5]],
        ),
        # means 1, 7/6, -11/8, -5/4 over 4 responses = -11/96
        (
            "sequence",
            11 / 96,
            [[0, -1 / 16, 0], [0, -1 / 12, -1 / 12], [0, 1 / 4, 0], [0, 1 / 12, 1 / 6]],
        ),
        # -1 / (4 responses of at most 3 tokens) = -1/12
        (
            "constant",
            1 / 12,
            [[0, -1 / 24, 0], [0, -1 / 12, -1 / 12], [0, 1 / 6, 0], [0, 1 / 12, 1 / 6]],
        ),
    ],
)
def test_clipped_loss_by_hand(
    logp: Tensor, aggregate: Aggregate, loss: float, grad: list[list[float]]
) -> None:
    total = normaliser(MASK, aggregate, max_tokens=3)
    result = policy_gradient_loss(logp, OLD_LOGP, GRPO, MASK, 0.25, 0.5, aggregate, total=total)
    close(result.loss, loss)
    close(result.clip_fraction, 4 / 10)
    close(gradient(result.loss, logp), grad)


def test_kl_by_hand(logp: Tensor) -> None:
    # rho: 1/2 2, 1/2 1 1, 1 1, 1 1/2 1/2
    close(kl_k1(logp, REF_LOGP, MASK), [[LN2, -LN2, 0], [LN2, 0, 0], [0, 0, 0], [0, LN2, LN2]])
    half = LN2**2 / 2
    close(kl_k2(logp, REF_LOGP, MASK), [[half, half, 0], [half, 0, 0], [0] * 3, [0, half, half]])
    low, high = LN2 - 1 / 2, 1 - LN2  # 1/2 - 1 + ln 2 and 2 - 1 - ln 2
    close(kl_k3(logp, REF_LOGP, MASK), [[low, high, 0], [low, 0, 0], [0, 0, 0], [0, low, low]])
    # d k1 = 1, d k2 = -log rho, d k3 = 1 - rho, with respect to logp
    assert gradient(kl_k1(logp, REF_LOGP)[0, 0], logp)[0, 0] == 1
    close(gradient(kl_k2(logp, REF_LOGP)[0, 0], logp)[0, 0], LN2)
    close(gradient(kl_k3(logp, REF_LOGP)[0, 1], logp)[0, 1], -1)


def test_k1_in_the_reward_by_hand(logp: Tensor) -> None:
    # k1 summed over tokens: 0, ln 2, 0, 2 ln 2.
    penalised = k1_penalised_rewards(FOUR_ROLLOUTS.rewards[0], logp, REF_LOGP, MASK, beta=0.5)
    close(penalised, [1, 1 - LN2 / 2, 0, -LN2])
    assert not penalised.requires_grad


def test_sft_loss_by_hand(logp: Tensor) -> None:
    # -log2: (1 + 2) + (1 + 2 + 2) + (2 + 1) + (2 + 2 + 1) = 16 over 10 tokens
    # (a mean of means would be 19/12).
    close(sft_loss(logp, MASK), 16 / 10 * LN2)
    # The second three times and the fourth not at all: 3 + 3 * 5 + 3 = 21 over 13 tokens.
    counts = torch.tensor([1, 3, 1, 0])
    close(sft_loss(logp, MASK, counts=counts), 21 / 13 * LN2)
    close(sft_loss(logp, MASK, 26.0, counts), 21 / 26 * LN2)


# Log-probabilities and entropy


def test_token_log_probs_are_the_log_softmax_of_the_ids() -> None:
    logits = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (2, 3))
    expected = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    close(token_log_probs(logits, ids), expected)
    close(gradient(token_log_probs(logits, ids).sum(), logits), gradient(expected.sum(), logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_vocabulary_tensor_is_kept(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 5, 1000).to(dtype).requires_grad_()
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        gradient(token_log_probs(logits, torch.randint(1000, (4, 5))).sum(), logits)
    kept.pop(logits.data_ptr(), None)
    assert sum(kept.values()) < 4 * 5 * 1000


def test_half_precision_logits_give_float32_log_probs() -> None:
    logits = (torch.randn(2, 3, 500) * 3).bfloat16().requires_grad_()
    ids = torch.randint(500, (2, 3))
    exact = logits.detach().double().requires_grad_()
    expected = token_log_probs(exact, ids)
    actual = token_log_probs(logits, ids)
    assert actual.dtype == torch.float32
    close(actual.double(), expected, atol=1e-4)
    # The gradient itself is stored in the logits' precision.
    close(gradient(actual.sum(), logits).double(), gradient(expected.sum(), exact), atol=4e-3)


def test_entropy() -> None:
    logits = tensor([[[0, 0, 0, 0], [math.log(2), 0, 0, -math.inf]]])  # 1/2, 1/4, 1/4, 0
    close(token_entropy(logits), [[2 * LN2, 1.5 * LN2]])


# Advantages


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_give_exact_zeros(kind: AdvantageKind) -> None:
    # 0.1 + 0.2 and 0.3 differ by rounding alone.
    rewards = tensor([[0.1 + 0.2, 0.3, 0.3], [0, 1, 0], [7, 7, 7]])
    assert zero_variance(rewards).tolist() == [True, False, True]
    advantages = group_advantages(rewards, kind)
    assert advantages[[0, 2]].eq(0).all()
    assert advantages[1].ne(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(tensor([[0.0, bad]]), "dr_grpo")


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(tensor([[1.0], [0.0]]), "grpo")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="grpo, dr_grpo or rloo"):
        group_advantages(tensor([[0, 1]]), cast(AdvantageKind, "gae"))
    with pytest.raises(ValueError, match="token, sequence or constant"):
        normaliser(MASK, cast(Aggregate, "mean"))
    with pytest.raises(ValueError, match="max_tokens"):
        aggregate_tokens(MASK.double(), MASK, "constant")


@FAST
@given(
    st.lists(st.lists(st.integers(-8, 8), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(-100, 100),
    st.sampled_from(KINDS),
)
def test_advantages_ignore_a_shift_and_sum_to_zero(
    rows: list[list[int]], shift: int, kind: AdvantageKind
) -> None:
    rewards = tensor(rows)
    advantages = group_advantages(rewards, kind)
    close(group_advantages(rewards + shift, kind), advantages)
    close(advantages.sum(-1), torch.zeros(len(rows)))


# The policy-gradient loss against a plain loop, and what masks and micro-batches may not change


def plain_loop(
    logp: Tensor, old: Tensor, adv: Tensor, mask: Tensor, low: float, high: float, w: Tensor
) -> dict[str, float]:
    sums, lengths, clipped = [], [], 0
    for i in range(len(logp)):
        sums.append(0.0)
        lengths.append(0)
        for t in range(logp.shape[1]):
            if not mask[i, t]:
                continue
            ratio, a = math.exp(logp[i, t] - old[i, t]), float(adv[i])
            held = min(max(ratio, 1 - low), 1 + high)
            sums[-1] -= min(ratio * a, held * a) * float(w[i, t])
            clipped += held * a < ratio * a
            lengths[-1] += 1
    used = [(s, n) for s, n in zip(sums, lengths, strict=True) if n]
    return {
        "token": sum(sums) / max(sum(lengths), 1),
        "sequence": sum(s / n for s, n in used) / max(len(used), 1),
        "constant": sum(sums) / (len(logp) * 9),
        "clip_fraction": clipped / max(sum(lengths), 1),
    }


def batch(seed: int, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logp, old_logp, advantages, a right-padded mask (lengths from 0), weights."""
    rng = torch.Generator().manual_seed(seed)
    old = torch.rand(rows, width, generator=rng, dtype=torch.float64).log()
    logp = old + 0.5 * torch.randn(rows, width, generator=rng, dtype=torch.float64)
    advantages = torch.randn(rows, generator=rng, dtype=torch.float64)
    lengths = torch.randint(0, width + 1, (rows, 1), generator=rng)
    weights = torch.rand(rows, width, generator=rng, dtype=torch.float64)
    return logp.requires_grad_(), old, advantages, torch.arange(width) < lengths, weights


BATCHES = {"seed": st.integers(0, 10**6), "rows": st.integers(2, 5), "width": st.integers(1, 5)}


@pytest.mark.parametrize("aggregate", AGGREGATES)
@FAST
@given(**BATCHES)
def test_loss_equals_a_plain_loop(aggregate: Aggregate, seed: int, rows: int, width: int) -> None:
    logp, old, advantages, mask, weights = batch(seed, rows, width)
    total = normaliser(mask, aggregate, max_tokens=9)
    result = policy_gradient_loss(logp, old, advantages, mask, 0.2, 0.3, aggregate, weights, total)
    expected = plain_loop(logp.detach(), old, advantages, mask, 0.2, 0.3, weights)
    close(result.loss, expected[aggregate])
    close(result.clip_fraction, expected["clip_fraction"])


@pytest.mark.parametrize("aggregate", AGGREGATES)
@FAST
@given(**BATCHES, cut=st.integers(1, 4))
def test_micro_batches_add_up(
    aggregate: Aggregate, seed: int, rows: int, width: int, cut: int
) -> None:
    logp, old, advantages, mask, weights = batch(seed, rows, width)
    total = normaliser(mask, aggregate, max_tokens=9)

    def losses(part: slice, given_total: Tensor | None) -> Tensor:
        a, b, c, d, e = (x[part] for x in (logp, old, advantages, mask, weights))
        pg = policy_gradient_loss(a, b, c, d, 0.2, 0.3, aggregate, e, given_total).loss
        k3 = aggregate_tokens(kl_k3(a, b, d), d, aggregate, given_total)
        return torch.stack([pg, k3])

    whole = losses(slice(None), total if aggregate == "constant" else None)
    parts = losses(slice(0, cut), total) + losses(slice(cut, None), total)
    close(parts, whole)
    close(gradient(parts[0], logp), gradient(whole[0], logp))
    tokens = normaliser(mask, "token")
    split = sft_loss(logp[:cut], mask[:cut], tokens) + sft_loss(logp[cut:], mask[cut:], tokens)
    close(split, sft_loss(logp, mask))


JUNK = st.sampled_from([0.0, -7.0, 1e30, math.inf, -math.inf, math.nan])


@FAST
@given(**BATCHES, junk=st.tuples(JUNK, JUNK, JUNK))
def test_what_the_mask_hides_does_not_matter(
    seed: int, rows: int, width: int, junk: tuple[float, float, float]
) -> None:
    logp, old, advantages, mask, weights = batch(seed, rows, width)

    def values(new: Tensor, before: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        new = new.detach().requires_grad_()
        losses = [
            *policy_gradient_loss(new, before, advantages, mask, 0.2, 0.3, "token", w),
            sft_loss(new, mask),
            *(
                aggregate_tokens(k(new, before, mask), mask, "token")
                for k in KL_ESTIMATORS.values()
            ),
            k1_penalised_rewards(advantages, new, before, mask, 0.1).sum(),
        ]
        together = torch.stack(losses)
        return together, gradient(together.sum(), new)

    clean = values(logp, old, weights)
    spoiled = [torch.where(mask, x, j) for x, j in zip((logp, old, weights), junk, strict=True)]
    for actual, expected in zip(values(*spoiled), clean, strict=True):
        close(actual, expected)


def test_an_empty_mask_gives_zero_with_a_gradient(logp: Tensor) -> None:
    none = torch.zeros_like(MASK)
    for loss in (
        sft_loss(logp, none),
        policy_gradient_loss(logp, OLD_LOGP, GRPO, none, 0.2, 0.3, "sequence").loss,
    ):
        close(loss, 0)
        close(gradient(loss, logp), torch.zeros(4, 3))


def test_a_huge_ratio_stays_finite() -> None:
    logp = tensor([[0.0]]).requires_grad_()
    loss, _ = policy_gradient_loss(logp, tensor([[-1e4]]), tensor([-1.0]), tensor([[1]]), 0.2, 0.3)
    assert loss.isfinite()
    assert gradient(loss, logp).isfinite().all()


def test_weights_are_truncated_and_carry_no_gradient() -> None:
    trainer = tensor([[1 / 2, 1 / 2, 1 / 4, 1]]).log().requires_grad_()
    weights = truncated_weights(trainer, tensor([[1 / 2, 1 / 8, 1 / 2, 1e-300]]).log(), cap=2.0)
    close(weights, [[1, 2, 1 / 2, 2]])
    assert not weights.requires_grad


def test_weights_scale_the_gradient_and_have_none(logp: Tensor) -> None:
    loss, _ = policy_gradient_loss(logp, logp, GRPO, MASK, 0.2, 0.3, weights=logp.exp())
    # -A probability / 10
    once, twice = 1 / 40, 1 / 20
    expected = [[-twice, -once, 0], [-twice, -once, -once], [once, twice, 0], [once, once, twice]]
    close(gradient(loss, logp), expected)


# Lengths


def test_overlong_penalty() -> None:
    lengths = torch.tensor([1, 16, 18, 20, 25])
    torch.testing.assert_close(
        overlong_penalty(lengths, max_tokens=20, cache=4), torch.tensor([0, 0, -0.5, -1, -1])
    )
    for cache in (0, 21):
        with pytest.raises(ValueError, match="cache"):
            overlong_penalty(lengths, max_tokens=20, cache=cache)


def test_overlong_filter_drops_unfinished_rows() -> None:
    mask = torch.tensor([[1, 1], [1, 0]])
    assert overlong_filter(mask, torch.tensor([False, True])).tolist() == [[0, 0], [1, 0]]
    # Dropped rows do not dilute the mean of the others.
    values = tensor([[5, 5], [3, 9]])
    kept = overlong_filter(mask, torch.tensor([False, True]))
    close(aggregate_tokens(values, kept, "sequence"), 3)
