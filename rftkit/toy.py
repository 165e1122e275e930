"""A policy small enough to write down: every response enumerated, every expectation exact.

It is autoregressive like a language model, with a table of next-token logits for each prefix, so
what the notebooks and tests show on it are facts, not estimates. Nothing here is sampled: for real
models see rollout.py and trainer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rftkit.objectives import token_log_probs

EOS = "."


class ToyPolicy:
    """All responses over one-letter tokens, up to `max_tokens` of them, EOS included.

    With letters "ct" and 3 tokens: ".", "c.", "t.", "cc.", …, "tt.", and "ccc" … "ttt", which ran
    out of tokens before EOS. `logits` [prefixes, letters + 1] are the parameters, EOS last;
    zeros unless given. Everything is float64.
    """

    def __init__(self, letters: str = "ct", max_tokens: int = 3, logits: Tensor | None = None):
        self.letters, self.max_tokens = letters, max_tokens
        words = [["".join(w) for w in product(letters, repeat=k)] for k in range(max_tokens + 1)]
        self.prefixes = [word for level in words[:-1] for word in level]
        self._sequences = [prefix + EOS for prefix in self.prefixes] + words[-1]
        self.mask = self._table(lambda y, t: t < len(y)).bool()
        self.ids = self._table(lambda y, t: (letters + EOS).index(y[t]) if t < len(y) else 0)
        self._rows = self._table(lambda y, t: self.prefixes.index(y[:t]) if t < len(y) else 0)
        if logits is None:
            logits = torch.zeros(len(self.prefixes), len(letters) + 1)
        self.logits = logits.detach().double().clone().requires_grad_()

    def _table(self, cell: Callable[[str, int], int]) -> Tensor:
        return torch.tensor([[cell(y, t) for t in range(self.max_tokens)] for y in self._sequences])

    def sequences(self) -> list[str]:
        """The n responses, shortest first; index i below always means sequences()[i]."""
        return list(self._sequences)

    def lengths(self) -> Tensor:
        """Tokens of each response [n], EOS included."""
        return self.mask.sum(-1)

    def token_log_probs(self, temperature: float = 1.0) -> Tensor:
        """Log-probability of each token of each response [n, max_tokens]; 0 where the mask is."""
        logits = self.logits[self._rows] / temperature  # [n, max_tokens, letters + 1]
        return token_log_probs(logits, self.ids).masked_fill(~self.mask, 0.0)

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Log-probability of each response [n], differentiable in `logits`."""
        return self.token_log_probs(temperature).sum(-1)

    def probs(self) -> Tensor:
        """Probability of each response [n], differentiable; they sum to 1."""
        return self.log_probs().exp()

    def with_probs(self, probs: Tensor) -> ToyPolicy:
        """The policy of the same shape that has these probabilities [n], all above 0.

        Each logit is the log of the mass that passes through its prefix and token.
        """
        if not (probs > 0).all():
            raise ValueError("a softmax policy gives every response a probability above 0")
        logits = torch.zeros_like(self.logits)
        for row, prefix in enumerate(self.prefixes):
            for column, token in enumerate(self.letters + EOS):
                through = [y.startswith(prefix + token) for y in self._sequences]
                logits[row, column] = probs[torch.tensor(through)].sum().log()
        return ToyPolicy(self.letters, self.max_tokens, logits)

    def copy(self) -> ToyPolicy:
        """The same probabilities with parameters of its own."""
        return ToyPolicy(self.letters, self.max_tokens, self.logits)


# The refiner


def refiner_matrix(policy: ToyPolicy, rule: Callable[[str], str]) -> Tensor:
    """A refiner as a stochastic matrix [n, n]: R[y, y'] = R(y'|x, y), here 1 where rule(y) = y'.

    Raises ValueError where the rule gives a text that is not one of the responses.
    """
    sequences = policy.sequences()
    matrix = torch.zeros(len(sequences), len(sequences), dtype=torch.float64)
    for i, y in enumerate(sequences):
        if rule(y) not in sequences:
            raise ValueError(f"the refiner turns {y!r} into {rule(y)!r}, which is no response")
        matrix[i, sequences.index(rule(y))] = 1.0
    return matrix


def push_forward(policy: ToyPolicy, refiner: Tensor) -> Tensor:
    """q(y'|x) = sum over y of π(y|x) R(y'|x, y), [n], with no gradient through it."""
    return policy.probs().detach() @ refiner


def expected_sft_loss(policy: ToyPolicy, refiner: Tensor) -> Tensor:
    """Expectation of -log π(y'|x) over y ~ π, y' ~ R: nats per response.

    Its gradient is that of KL(q || π), q the push-forward: they differ by q's entropy, a constant.
    """
    return -(push_forward(policy, refiner) * policy.log_probs()).sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of two distributions [n], differentiable in both."""
    terms: Tensor = torch.special.xlogy(p, p) - torch.special.xlogy(p, q)  # 0 log 0 = 0
    return terms.sum()


def boltzmann(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """π*(y) ∝ reference(y) exp(r(y) / β), [n]: the policy that maximises E[r] - β KL(π || ref)."""
    return (reference.log() + rewards / beta).softmax(-1)


# Training without noise

Constraint = Literal["none", "kl", "dynamic"]


class Scene(NamedTuple):
    """A task on the toy: where the policy starts, two rewards [n], and the refiner [n, n]."""

    reference: ToyPolicy
    task_rewards: Tensor
    gold_rewards: Tensor
    refiner: Tensor


class History(NamedTuple):
    """probs [steps + 1, n]; norms [steps] of the gradients of task reward and of constraint."""

    probs: Tensor
    push: Tensor
    pull: Tensor

    @property
    def strength(self) -> Tensor:
        """The constraint's share of the gradient norm [steps].

        Where training has settled the two gradients cancel, so any constraint's share tends to
        1/2 there: to see a constraint switch itself off, look at `pull`.
        """
        return self.pull / (self.pull + self.push)


def train(
    scene: Scene, constraint: Constraint, coef: float = 0.0, steps: int = 200, lr: float = 1.0
) -> History:
    """Gradient descent on -E[task reward] + coef * constraint, with exact expectations.

    kl: KL(π || reference). dynamic: the expected SFT loss toward what the refiner makes of π.
    """
    policy = scene.reference.copy()
    probs, pushes, pulls = [policy.probs().detach()], [], []
    for _ in range(steps):
        push = _gradient(policy, -(policy.probs() * scene.task_rewards).sum())
        pull = _gradient(policy, constraint_loss(scene, policy, constraint, coef))
        with torch.no_grad():
            policy.logits -= lr * (push + pull)
        probs.append(policy.probs().detach())
        pushes.append(push.norm())
        pulls.append(pull.norm())
    return History(torch.stack(probs), torch.stack(pushes), torch.stack(pulls))


def constraint_loss(scene: Scene, policy: ToyPolicy, constraint: Constraint, coef: float) -> Tensor:
    """coef times the constraint's exact loss at this policy; 0 for none."""
    if constraint == "none":
        return 0.0 * policy.logits.sum()
    if constraint == "kl":
        return coef * kl(policy.probs(), scene.reference.probs().detach())
    if constraint == "dynamic":
        return coef * expected_sft_loss(policy, scene.refiner)
    raise ValueError(f"constraint {constraint!r}: choose none, kl or dynamic")


def _gradient(policy: ToyPolicy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, policy.logits)[0]


def cafe() -> Scene:
    """A café order in two words: c for a coffee, t for thanks.

    The task reward pays 1 for a coffee and 0.6 for every t, so that one more t always pays.
    The gold reward counts well-formed responses only: 1 for a coffee, 0.5 for thanks, at most 1.5.
    The refiner keeps the first of each letter and ends the response.
    """

    def refine(y: str) -> str:
        return "".join(dict.fromkeys(y.rstrip(EOS))) + EOS

    policy = ToyPolicy("ct", 3)
    common = {".": 4.0, "c.": 8.0, "t.": 4.0, "ct.": 2.0, "tc.": 1.0}
    ys = policy.sequences()
    weights = torch.tensor([common.get(y, 0.2) for y in ys], dtype=torch.float64)
    task = [1.0 * ("c" in y) + 0.6 * y.count("t") for y in ys]
    gold = [(refine(y) == y) * (1.0 * ("c" in y) + 0.5 * ("t" in y)) for y in ys]
    return Scene(
        policy.with_probs(weights / weights.sum()),
        torch.tensor(task, dtype=torch.float64),
        torch.tensor(gold, dtype=torch.float64),
        refiner_matrix(policy, refine),
    )


# An example to work out by hand


class FourRollouts(NamedTuple):
    """One group of four rollouts, with the probability of each token rather than its log.

    responses: c for a coffee, t for thanks, "." for EOS. rewards [1, 4]: 1 where there is a coffee.
    mask and probabilities [4, 3], 1 on padding: under the policy now, under the policy that
    sampled, and under the reference.
    """

    responses: tuple[str, ...]
    rewards: Tensor
    mask: Tensor
    probs: Tensor
    old_probs: Tensor
    ref_probs: Tensor


def _double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


FOUR_ROLLOUTS = FourRollouts(
    responses=("c.", "ct.", "t.", "tt."),
    rewards=_double([1, 1, 0, 0]),
    mask=torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]),
    probs=_double(
        [1 / 2, 1 / 4, 1], [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1], [1 / 4, 1 / 4, 1 / 2]
    ),
    old_probs=_double([1 / 4, 1 / 2, 1], [1 / 4] * 3, [1 / 2, 1 / 4, 1], [1 / 2, 1 / 4, 1 / 4]),
    ref_probs=_double([1 / 4, 1 / 2, 1], [1 / 4] * 3, [1 / 4, 1 / 2, 1], [1 / 4, 1 / 8, 1 / 4]),
)
