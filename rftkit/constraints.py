"""What holds the policy near good text: nothing, KL, or the dynamic constraint.

A constraint looks at a batch of rollouts once (`prepare`), may change the rewards, and adds a loss
to every micro-batch. The trainer knows no more of it than this interface.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pkgutil import resolve_name
from statistics import fmean
from typing import Any

import torch

from rftkit.config import CONSTRAINTS, RunConfig
from rftkit.errors import UserError
from rftkit.faults import make_refiner
from rftkit.instruct import FALLBACKS
from rftkit.models import Policy
from rftkit.objectives import (
    KL_ESTIMATORS,
    adaptive_beta,
    aggregate_tokens,
    k1_penalised_rewards,
    sft_loss,
)
from rftkit.refiner import OnlineRefiner, Refinement
from rftkit.rollout import Rollouts
from rftkit.scoring import pad_rows, score_targets

# Best of the recorded sweep on tuning seeds (data/runs), per task; used where coef is unset.
TUNED: dict[str, dict[str, float]] = {
    "kl": {"dialogue": 0.8, "code": 0.8, "game": 0.4},
    # nats a response, not a token: the best of the study's tuning with a learning rate of 5e-4
    "k1-reward": {"dialogue": 0.3, "code": 0.3, "game": 0.1},
    "dynamic": {"dialogue": 3.0, "code": 3.0, "game": 1.0},
}


@dataclass
class Pull:
    """What a constraint found out about one batch of rollouts.

    ref_log_probs: per rollout, log π_ref of each response token (nats). refinements: by rollout,
    of all that were refined; `sft_rows` are those whose refined response is learned from.
    """

    ref_log_probs: list[torch.Tensor] | None = None
    refinements: dict[int, Refinement] | None = None
    sft_rows: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class MicroBatch:
    """Part of a batch, with log-probs that carry gradients.

    logp, ref_logp, mask [rows, seq]: the rollouts, `rows` their places in the batch, `total` the
    response tokens of the whole batch. sft_logp, sft_mask [targets, seq]: the refined responses,
    sft_count [targets] how often each occurs, `sft_total` their tokens in the whole batch.
    """

    logp: torch.Tensor
    ref_logp: torch.Tensor | None
    mask: torch.Tensor
    total: float
    sft_logp: torch.Tensor
    sft_mask: torch.Tensor
    sft_count: torch.Tensor
    sft_total: float


class NoConstraint:
    """The policy gradient alone, and the interface of all constraints."""

    name = "none"
    tunable = False

    def __init__(self, policy: Policy, config: RunConfig):
        self.policy, self.config = policy, config
        self.coef = self._coef() if self.tunable else 0.0

    def _coef(self) -> float:
        if self.config.coef is not None:
            return self.config.coef
        tuned = self._tuned()
        # A plain variant is tuned as its task is; a task of your own as dialogue.
        return tuned.get(self.config.task.removesuffix("-plain"), tuned["dialogue"])

    def _tuned(self) -> dict[str, float]:
        """The coefficients that were tuned, by task; of a constraint of your own, the dynamic's."""
        return TUNED.get(self.name, TUNED["dynamic"])

    def prepare(self, rollouts: Rollouts, seed: int) -> Pull:
        """Look at the rollouts, once a step. `seed` decides anything random."""
        return Pull()

    def rewards(self, rewards: torch.Tensor, rollouts: Rollouts, pull: Pull) -> torch.Tensor:
        """Task rewards [rollouts] as the policy gradient shall see them."""
        return rewards

    def loss(self, part: MicroBatch) -> torch.Tensor | None:
        """The loss on a micro-batch, coefficient included; None where there is none."""
        return None

    def sample_refiner(self) -> OnlineRefiner:
        """Whose refinements stand in samples.jsonl: what the reference would say of the run."""
        return OnlineRefiner(self.policy, self.config.max_new_tokens, self.config.edit_limit)

    def after_step(self, step: int, kl: float | None) -> None:
        """Called after the update of `step`, with the batch's KL in nats a token where known."""

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that a checkpoint needs besides the configuration."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state`."""


class KLConstraint(NoConstraint):
    """β · KL(π‖π_ref), as k1 in the reward or as a k2 or k3 loss; β fixed or adaptive.

    With `reference_reset`, π_ref becomes the present policy every so many steps.
    """

    name = "kl"
    tunable = True

    def __init__(self, policy: Policy, config: RunConfig):
        super().__init__(policy, config)
        kind, _, self.place = config.kl_form.partition("-")
        self.estimator = next(f for name, f in KL_ESTIMATORS.items() if name == kind)
        self._reference: dict[str, torch.Tensor] | None = None  # an adapter; None = no adapter
        if config.kl_target and not self.coef:
            raise UserError("coef: 0 stays 0 under kl_target, which multiplies it; start above 0")

    def _tuned(self) -> dict[str, float]:
        return TUNED.get(self.config.kl_form, TUNED["kl"])

    def prepare(self, rollouts: Rollouts, seed: int) -> Pull:
        with self._reference_model():
            ref = score_targets(
                self.policy.model,
                rollouts.prompt_ids,
                rollouts.response_ids,
                self.config.token_budget,
                self.config.temperature,
            )
        return Pull(ref_log_probs=ref, metrics={"beta": self.coef})

    def rewards(self, rewards: torch.Tensor, rollouts: Rollouts, pull: Pull) -> torch.Tensor:
        if self.place != "reward" or pull.ref_log_probs is None:
            return rewards
        logp, ref = pad_rows(rollouts.log_probs), pad_rows(pull.ref_log_probs)
        mask = pad_rows([torch.ones(len(row)) for row in rollouts.log_probs])
        return k1_penalised_rewards(rewards, logp, ref, mask, self.coef)

    def loss(self, part: MicroBatch) -> torch.Tensor | None:
        if self.place != "loss" or part.ref_logp is None:
            return None
        kl = self.estimator(part.logp, part.ref_logp, part.mask)
        return self.coef * aggregate_tokens(kl, part.mask, "token", part.total)

    def after_step(self, step: int, kl: float | None) -> None:
        if self.config.kl_target and kl is not None:
            self.coef = adaptive_beta(self.coef, kl, self.config.kl_target)
        every = self.config.reference_reset
        if every and (step + 1) % every == 0:
            self._reference = self.policy.adapter()

    def _reference_model(self) -> Any:
        if self._reference is None:
            return self.policy.reference()
        return self.policy.with_adapter(self._reference)

    def state(self) -> dict[str, torch.Tensor]:
        adapter = self._reference or {}
        return {"beta": torch.tensor(self.coef, dtype=torch.float64)} | {
            f"ref.{k}": v for k, v in adapter.items()
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.coef = float(state["beta"])
        adapter = {k.removeprefix("ref."): v for k, v in state.items() if k.startswith("ref.")}
        self._reference = adapter or None


class DynamicConstraint(NoConstraint):
    """λ · SFT loss toward the refined responses: it pulls only where the refiner corrects.

    All refined responses count by default, the unchanged too: on them the loss reinforces what the
    refiner accepts. `sft_on="changed"` leaves them out, which is another objective (an ablation).
    """

    name = "dynamic"
    tunable = True
    refiner_name = "dynamic"

    def __init__(self, policy: Policy, config: RunConfig, refiner: OnlineRefiner | None = None):
        super().__init__(policy, config)
        self.refiner = refiner or make_refiner(policy, config, self.refiner_name)

    def prepare(self, rollouts: Rollouts, seed: int) -> Pull:
        rows = self._drawn(len(rollouts), seed)
        messages = [list(rollouts.prompts[i].messages) for i in rows]
        before = self.refiner.passes
        responses = [rollouts.response_ids[i] for i in rows]
        refined = self.refiner.refine_ids(messages, responses, seed)
        refinements = dict(zip(rows, refined, strict=True))
        changed = [i for i, r in refinements.items() if r.changed]

        def refused(why: str) -> float:
            return fmean(r.fallback == why for r in refined)

        metrics = {
            "edit_ratio": fmean(r.edit_ratio for r in refined),
            "changed": len(changed) / len(refined),
            "refused": fmean(bool(r.fallback) for r in refined),
            **{f"refused_{why.replace(' ', '_')}": refused(why) for why in FALLBACKS},
            "stripped": fmean(r.stripped for r in refined),
            "refiner_passes": self.refiner.passes - before,
            "rounds": fmean(r.rounds for r in refined),
            "refined_length": fmean(len(r.refined_ids) for r in refined),
        }
        learned = changed if self.config.sft_on == "changed" else rows
        return Pull(refinements=refinements, sft_rows=learned, metrics=metrics)

    def sample_refiner(self) -> OnlineRefiner:
        """That which training learns from; a control's refinements are none."""
        return self.refiner if self.refiner_name == "dynamic" else super().sample_refiner()

    def _drawn(self, count: int, seed: int) -> list[int]:
        """The rollouts to refine: all, or a random share, at least one, in order."""
        share = self.config.refine_share
        if share == 1:
            return list(range(count))
        return sorted(random.Random(seed).sample(range(count), max(1, round(share * count))))

    def loss(self, part: MicroBatch) -> torch.Tensor | None:
        if not len(part.sft_logp):
            return None
        loss = sft_loss(part.sft_logp, part.sft_mask, part.sft_total, part.sft_count)
        return self.coef * loss


class IdentityConstraint(DynamicConstraint):
    """Control: SFT toward the response itself."""

    name = refiner_name = "identity"


class FreshConstraint(DynamicConstraint):
    """Control: SFT toward a fresh answer of the reference."""

    name = refiner_name = "fresh"


class RandomEditConstraint(DynamicConstraint):
    """Control: SFT toward the response with random edits of the refiner's size."""

    name = refiner_name = "random-edit"


def make_constraint(policy: Policy, config: RunConfig) -> NoConstraint:
    """The constraint that the configuration names, by its line in `rftkit.config.CONSTRAINTS`."""
    made: NoConstraint = resolve_name(CONSTRAINTS[config.constraint])(policy, config)
    return made


def unused_settings(given: Iterable[str], constraint: NoConstraint) -> list[str]:
    """Names of settings that one of the kit's constraints does not read."""
    of_kl = {"kl_form", "kl_target", "reference_reset"}
    of_sft = {name for name in given if name.startswith("refine")} | {"sft_on"}
    if isinstance(constraint, KLConstraint):
        unused = of_sft
    elif isinstance(constraint, DynamicConstraint):
        unused = of_kl
        if constraint.refiner_name == "identity":
            unused = of_kl | {"refiner_model", "refiner_noise", "edit_limit"}
    else:
        unused = of_kl | of_sft | {"coef"} if type(constraint) is NoConstraint else set()
    return [name for name in given if name in unused]
