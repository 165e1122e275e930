"""Numbers gone bad: what to do with a step whose rewards, losses or gradients mean nothing.

A step with a number that is not finite is skipped, counted, and named in the log with the likely
cause and the setting to change; after `patience` such steps in a row the run stops. Meanwhile
nothing is saved, so the checkpoint is from before them. An evaluation with such a number stops the
run at once. A step that merely teaches nothing, as where all rewards are equal, is named and
counted too, but the run goes on: a collapsed policy is a result.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from rftkit.config import RunConfig
from rftkit.errors import BadStepError, DivergedError, UserError
from rftkit.tasks import Prompt, Score, Task

log = logging.getLogger("rftkit")


class Health:
    """Counts of the steps that taught nothing, by reason, and how many were skipped in a row."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.counts: Counter[str] = Counter()
        self.in_a_row = 0
        self._last = ""

    def restore(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count what the metrics of an earlier process say."""
        for row in rows:
            self._count(row.get("skipped") or "", row.get("idle") or "")

    def good(self, step: int, idle: str) -> None:
        """A step was made; `idle` says why it taught nothing, "" where it taught something."""
        if idle and idle != self._last:
            log.warning("step %d: %s", step, idle)
        self._count("", idle)

    def bad(self, step: int, error: BadStepError) -> None:
        """A step was skipped. Raises DivergedError where that was one too many in a row."""
        self._count(error.what, "")
        log.warning("step %d skipped (%d in a row): %s", step, self.in_a_row, error)
        if self.in_a_row >= self.config.patience:
            raise DivergedError(
                f"stopped at step {step}, {self.in_a_row} steps in a row were skipped; {error}"
            )

    def summary(self) -> str:
        """One line on the steps that taught nothing; "" where there were none."""
        return "; ".join(f"{count} steps: {what}" for what, count in self.counts.items())

    def _count(self, skipped: str, idle: str) -> None:
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self._last = idle
        if skipped or idle:
            self.counts[f"skipped, {skipped}" if skipped else idle] += 1


@contextmanager
def evaluating(config: RunConfig, step: int) -> Iterator[None]:
    """Inside, numbers gone bad end the run, for no later evaluation would be better."""
    try:
        yield
    except BadStepError as error:
        slower = f", or lower lr (now {config.lr:g}) and start a new run" if step else ""
        raise DivergedError(f"stopped at the evaluation of step {step}; {error}{slower}") from None


def a_number(name: str, value: float) -> float:
    """The value of a metric, which may be infinite. Raises BadStepError where it is no number."""
    if math.isnan(value):
        raise BadStepError(f"{name} is not a number", "the model broke down; take precision fp32")
    return value


def check_rewards(rewards: torch.Tensor) -> None:
    """Raise BadStepError where a task reward is not finite."""
    if not torch.isfinite(rewards).all():
        count = int((~torch.isfinite(rewards)).sum())
        raise BadStepError(
            "task_reward not finite",
            f"{count} of {len(rewards)} responses; mend what the task's score returns for them",
        )


def check_losses(config: RunConfig, losses: Mapping[str, float], grad_norm: float) -> None:
    """Raise BadStepError where a loss or the gradient is not finite, before it does harm."""
    slower = f"lower lr (now {config.lr:g})"
    if not math.isfinite(losses["constraint_loss"]):
        kl = "KL overflowed, the policy is far from its reference; "
        cause = kl if config.constraint == "kl" else ""
        raise BadStepError("constraint_loss not finite", f"{cause}{slower} or change coef")
    if not math.isfinite(losses["policy_loss"]):
        raise BadStepError(
            "policy_loss not finite", f"{slower} or importance_cap, or take precision fp32"
        )
    if not math.isfinite(grad_norm):
        raise BadStepError("grad_norm not finite", f"{slower} or take precision fp32")


def check_weights(config: RunConfig, parameters: Sequence[torch.Tensor]) -> None:
    """Raise DivergedError where an update threw the weights out of range: nothing mends that."""
    if not math.isfinite(float(torch.nn.utils.get_total_norm(parameters))):
        raise DivergedError(
            f"the adapter's weights overflowed: lower lr (now {config.lr:g}) and start a new run"
        )


def check_refined(refined: Sequence[str]) -> None:
    """Raise BadStepError where the refiner returned nothing: its SFT loss would teach silence."""
    if refined and not any(text.strip() for text in refined):
        raise BadStepError("every refined response is empty", "mend the refiner, or take another")


def idle_reason(
    config: RunConfig, zero_variance: float, finished: Sequence[bool], refused: float = 0.0
) -> str:
    """Why a step teaches little, with the setting to change; else "".

    zero_variance: share of groups of equal rewards. refused: share of refinements that are none.
    """
    if not any(finished):
        limit = config.max_new_tokens
        return f"every response ran out of tokens; raise max_new_tokens (now {limit})"
    if zero_variance == 1:
        more = "" if config.resample else ", or set resample"
        return f"all rewards of each group are equal; raise group or temperature{more}"
    if refused == 1:
        return "every refinement was refused (refused_* say why); take another refiner"
    return ""


def scores_of(
    task: Task,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    finished: Sequence[bool],
    gold: bool = True,
) -> list[Score]:
    """`task.score`, or a UserError that names the task, the place and what is wrong.

    Without `gold` numbers that are not finite pass: `check_rewards` skips their step.
    """
    name = getattr(task, "name", type(task).__name__)
    try:
        scores = list(task.score(prompts, responses, finished, gold=gold))
    except UserError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise UserError(
            f"task {name!r}: score raised {type(error).__name__} at {place}: {error}"
        ) from error
    if len(scores) != len(responses):
        raise UserError(
            f"task {name!r}: score returned {len(scores)} scores for {len(responses)} responses"
        )
    for i, score in enumerate(scores):
        for field in ("task_reward", "gold_reward", "degenerate"):
            value = getattr(score, field, None)
            bad = not isinstance(value, Real) or (gold and not math.isfinite(value))
            if bad:
                raise UserError(
                    f"task {name!r}: {field} of response {i} is {value!r}; return a finite number"
                )
    return scores
