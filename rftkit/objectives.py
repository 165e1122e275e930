"""Pure tensor functions: log-probabilities, advantages, the policy gradient, KL, the SFT loss.

No model, no configuration, no state: what the trainer and the constraints compute with, and what
the notebooks prove things about. A mask is [batch, seq], 1 where a response token counts (EOS
included), 0 on padding; whatever stands under a 0 changes neither a value nor a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

AdvantageKind = Literal["grpo", "dr_grpo", "rloo"]
Aggregate = Literal["token", "sequence", "constant"]
KLKind = Literal["k1", "k2", "k3"]

# Largest log of a probability ratio that is exponentiated; e^20 is about 5e8. For tokens sampled
# from the ratio's denominator, a larger one has a probability below e^-20 (Markov's inequality).
MAX_LOG_RATIO = 20.0

# Rewards of a group that differ by less, relative to the largest of them or to 1, count as equal:
# dividing by their spread would turn rounding errors into advantages of 1.
EQUAL_REWARDS = 1e-6


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability in nats of each id: logits [batch, seq, vocab], ids [batch, seq].

    The id's logit minus logsumexp, so that no second [batch, seq, vocab] tensor is kept for the
    backward pass. Half-precision logits are worked on in float32, row by row and again in the
    backward pass, for the same reason. Ids must be valid also under a mask's 0.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        rows = [
            checkpoint(_token_log_probs, *row, use_reentrant=False, preserve_rng_state=False)
            for row in zip(logits, ids, strict=True)
        ]
        return torch.stack(rows)
    return _token_log_probs(logits, ids)


def _token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    logits = _full_precision(logits)
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


@torch.no_grad()
def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each next-token distribution: [batch, seq, vocab] to [batch, seq].

    A metric without gradient, row by row to keep the memory small.
    """
    rows = [torch.special.entr(_full_precision(row).softmax(-1)).sum(-1) for row in logits]
    return torch.stack(rows)


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


# Advantages


def group_advantages(rewards: Tensor, kind: AdvantageKind) -> Tensor:
    """Advantages [prompts, group] of rewards [prompts, group], each group compared with itself.

    grpo: (r - mean) / std (Shao et al., 2024), with the population's standard deviation; TRL
    divides by the sample's, which is larger by sqrt(group / (group - 1)). dr_grpo: r - mean
    (Liu et al., 2025). rloo: r minus the mean of the others (Ahmadian et al., 2024).
    A group without variance gives zeros: nothing to learn. Raises ValueError on rewards that are
    not finite and on groups of fewer than 2.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    flat = zero_variance(rewards)[:, None]
    size = rewards.shape[1]
    if kind == "grpo":
        scale = 1 / rewards.std(-1, correction=0, keepdim=True).masked_fill(flat, 1.0)
    elif kind == "dr_grpo":
        scale = torch.ones_like(centred)
    elif kind == "rloo":
        # r_i - (sum - r_i) / (size - 1) = (r_i - mean) * size / (size - 1)
        scale = torch.full_like(centred, size / (size - 1))
    else:
        raise ValueError(f"advantages {kind!r}: choose grpo, dr_grpo or rloo")
    return (centred * scale).masked_fill(flat, 0.0)


def zero_variance(rewards: Tensor) -> Tensor:
    """Which groups [prompts] of rewards [prompts, group] have equal rewards: no gradient there.

    DAPO's dynamic sampling replaces them (Yu et al., 2025); if all groups are so, the step learns
    nothing. Raises ValueError as `group_advantages` does.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards must be [prompts, group] with a group of at least 2, not {[*rewards.shape]}"
        )
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite: look for nan or inf in the task reward")
    spread = rewards.amax(-1) - rewards.amin(-1)
    return spread <= EQUAL_REWARDS * rewards.abs().amax(-1).clamp(min=1.0)


# From tokens to one number


def normaliser(mask: Tensor, aggregate: Aggregate, max_tokens: int | None = None) -> Tensor:
    """What a batch's sum is divided by; give the whole batch's to each of its micro-batches.

    token: its tokens (DAPO). sequence: its responses, not counting the wholly masked (GRPO).
    constant: rows times `max_tokens`, the longest response allowed (Dr. GRPO); needs `max_tokens`.
    At least 1, so that an empty batch has loss 0.
    """
    if aggregate == "token":
        count = mask.bool().sum()
    elif aggregate == "sequence":
        count = mask.bool().any(-1).sum()
    elif aggregate == "constant":
        if max_tokens is None:
            raise ValueError("aggregate 'constant' needs max_tokens, or total= of the whole batch")
        count = torch.tensor(mask.shape[0] * max_tokens, device=mask.device)
    else:
        raise ValueError(f"aggregate {aggregate!r}: choose token, sequence or constant")
    return count.clamp(min=1)


def aggregate_tokens(
    values: Tensor, mask: Tensor, aggregate: Aggregate, total: Tensor | float | None = None
) -> Tensor:
    """Sum values [batch, seq] where the mask is 1, divided by `total`.

    token and constant sum over tokens, sequence over the mean of each response. `total` is this
    batch's `normaliser` unless given; with the whole batch's, micro-batch losses add up to the
    whole batch's loss exactly. constant has no default: pass `normaliser(mask, "constant", n)`.
    """
    if total is None:
        total = normaliser(mask, aggregate)
    rows = _keep(values, mask).sum(-1)
    if aggregate == "sequence":
        rows = rows / mask.bool().sum(-1).clamp(min=1)
    return rows.sum() / total


def _keep(values: Tensor, mask: Tensor | None) -> Tensor:
    # Filling, unlike multiplying by 0, also stops nan and inf, and their gradients.
    return values if mask is None else values.masked_fill(~mask.bool(), 0.0)


# The policy gradient


class PolicyLoss(NamedTuple):
    """loss: to minimise. clip_fraction: share of this call's tokens that clipping holds still."""

    loss: Tensor
    clip_fraction: Tensor


def policy_gradient_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    aggregate: Aggregate = "token",
    weights: Tensor | None = None,
    total: Tensor | float | None = None,
) -> PolicyLoss:
    """PPO's clipped loss, -min(ratio A, clip(ratio) A), with DAPO's separate clip-higher.

    logp, old_logp, mask [batch, seq]; advantages A [batch]. ratio = exp(logp - old_logp), clipped
    to [1 - clip_low, 1 + clip_high]: a token that has moved so far in its advantage's direction
    gets no gradient. `weights` [batch, seq] multiply each token's loss and carry no gradient (see
    `truncated_weights`). `aggregate` and `total` as in `aggregate_tokens`.
    Sources: Schulman et al., 2017; Yu et al., 2025 (DAPO).
    """
    log_ratio = _keep(logp, mask) - _keep(old_logp.detach(), mask)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    free = ratio * advantages[:, None]
    held = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages[:, None]
    gain = torch.minimum(free, held)
    if weights is not None:
        gain = gain * weights.detach()
    clip_fraction = aggregate_tokens((held < free).to(gain.dtype), mask, "token")
    return PolicyLoss(-aggregate_tokens(gain, mask, aggregate, total), clip_fraction)


def truncated_weights(trainer_logp: Tensor, sampler_logp: Tensor, cap: float) -> Tensor:
    """min(exp(trainer - sampler), cap) per token, without gradient: truncated importance sampling.

    Corrects for a sampler whose log-probabilities differ from the trainer's for the same weights
    (another kernel or precision); the cap bounds the variance (Yao et al., 2025).
    """
    log_ratio = (trainer_logp - sampler_logp).detach()
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


# KL(policy || reference), estimated from tokens or responses y that the policy sampled.
# rho = reference(y) / policy(y). As a loss, only the estimator is differentiated, not the sampling.
#
# On whole responses (log-probabilities summed over tokens) the expected gradients are as each
# docstring says. Per token and summed over a response, the usual way, they are those of the
# next-token KL at every prefix visited: what a token does to later prefixes is left out, and only
# `k1_penalised_rewards` counts it.


def kl_k1(logp: Tensor, ref_logp: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log rho = logp - ref_logp, in nats, elementwise; 0 where the mask is 0.

    Unbiased, may be negative. As a loss its expected gradient is zero: it constrains nothing.
    """
    return -_log_rho(logp, ref_logp, mask)


def kl_k2(logp: Tensor, ref_logp: Tensor, mask: Tensor | None = None) -> Tensor:
    """(log rho)^2 / 2, in nats, elementwise; 0 where the mask is 0.

    Biased, never negative. As a loss its expected gradient is that of KL(policy || reference).
    """
    return _log_rho(logp, ref_logp, mask).square() / 2


def kl_k3(logp: Tensor, ref_logp: Tensor, mask: Tensor | None = None) -> Tensor:
    """rho - 1 - log rho, in nats, elementwise; 0 where the mask is 0.

    Unbiased, never negative. As a loss its expected gradient is that of KL(reference || policy),
    the other direction. log rho is cut at MAX_LOG_RATIO against overflow, on that side alone: very
    negative values are what a collapsed policy shows, and must keep their gradient.
    """
    log_rho = _log_rho(logp, ref_logp, mask).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_rho) - log_rho


def _log_rho(logp: Tensor, ref_logp: Tensor, mask: Tensor | None) -> Tensor:
    return _keep(ref_logp.detach(), mask) - _keep(logp, mask)


KL_ESTIMATORS: dict[KLKind, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def k1_penalised_rewards(
    rewards: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """rewards - beta * sum over tokens of k1, [batch], without gradient: KL in the reward.

    The score function turns it into the gradient of KL(policy || reference) over whole responses.
    """
    return (rewards - beta * kl_k1(logp, ref_logp, mask).sum(-1)).detach()


def adaptive_beta(
    beta: float, kl: float, target: float, gain: float = 0.1, clip: float = 0.2
) -> float:
    """The next beta: up where KL (nats) is above target, down where below (Ziegler et al., 2019).

    beta * (1 + gain * error), error = (kl - target) / target within [-clip, clip]. Raises
    ValueError unless kl is finite and target positive.
    """
    if not math.isfinite(kl) or not target > 0:
        raise ValueError(f"adaptive beta needs a finite kl and a target above 0: {kl=}, {target=}")
    error = min(max((kl - target) / target, -clip), clip)
    return beta * (1 + gain * error)


# Supervised fine-tuning, and responses that run too long


def sft_loss(
    logp: Tensor,
    mask: Tensor,
    total: Tensor | float | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Mean over all tokens of the batch of -logp [batch, seq], in nats per token.

    With `counts` [batch], row i stands for counts[i] equal responses, each counted.

    Over tokens, not the mean of each response's mean: that would pull toward short responses even
    where the refiner changes nothing. A mean over few responses keeps a little of this, of order
    1 / responses, since the sum and the token count vary together; a constant `total` has none.
    With an empty mask the loss is 0 and still has a gradient (of zeros).
    """
    if counts is not None:
        logp = logp * counts[:, None]
        if total is None:
            total = (mask.bool().sum(-1) * counts).sum().clamp(min=1)
    return aggregate_tokens(-logp, mask, "token", total)


def overlong_penalty(lengths: Tensor, max_tokens: int, cache: int) -> Tensor:
    """DAPO's soft punishment [batch] to add to the rewards, by lengths [batch] in tokens.

    0 up to max_tokens - cache, then linear down to -1 at max_tokens (Yu et al., 2025, equation
    13). Raises ValueError unless 0 < cache <= max_tokens.
    """
    if not 0 < cache <= max_tokens:
        raise ValueError(f"overlong cache must be within 1 to max_tokens = {max_tokens}: {cache}")
    return ((max_tokens - cache - lengths) / cache).clamp(-1.0, 0.0)


def overlong_filter(mask: Tensor, finished: Tensor) -> Tensor:
    """The mask with 0 in each row whose response has no EOS; finished [batch] is bool.

    DAPO's alternative to the penalty: a response that was cut off says nothing about its reward.
    """
    return mask * finished[:, None].to(mask.dtype)
