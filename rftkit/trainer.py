"""The training loop: prompts → rollouts → scores → advantages → constraint → loss → update.

One update a step by default, on-policy. Everything random in step n follows from (seed, n), so a
resumed run repeats the uninterrupted one bit for bit. Left out, compared with large engines:
several machines, asynchronous sampling, sequence packing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from rftkit import health
from rftkit.batch import Batch, Gradients, kl_of, strength
from rftkit.config import RunConfig
from rftkit.constraints import NoConstraint, Pull, make_constraint
from rftkit.errors import BadStepError, DivergedError, UserError
from rftkit.files import find_folder, replace_folder
from rftkit.guard import whole_step
from rftkit.models import Policy, load_policy
from rftkit.objectives import group_advantages, overlong_penalty, zero_variance
from rftkit.rollout import Rollouts, Sampler, check_fits
from rftkit.runs import RunFolder
from rftkit.scoring import score_targets
from rftkit.state import load_state, reading, save_state
from rftkit.tasks import Prompt, Score, Task, task_of
from rftkit.tasks.base import instructed
from rftkit.tasks.own import OwnTask
from rftkit.tracking import Trackers

log = logging.getLogger("rftkit")

Metrics = dict[str, Any]

# Every line of metrics.jsonl has these, null where not measured at that step; more may follow.
# task_reward: of the step's batch. kl: held-out where evaluated, as gold reward and degenerate
# share are; at other steps that of the batch, which the KL constraint alone computes (null where
# its reference was reset, or the temperature is not 1). coef: as trained with. tokens: all sampled.
KEYS = (
    "step", "coef", "task_reward", "gold_reward", "degenerate", "kl", "edit_ratio", "changed",
    "strength", "pull", "entropy", "length", "grad_norm", "tokens", "seconds",
)  # fmt: skip


class Trainer:
    """Trains one policy under one constraint.

    `train` runs to the end; `steps` yields each step's metrics, for callers that watch or stop.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path | str | None = None,
        *,
        resume: bool = False,
        policy: Policy | None = None,
        task: Task | None = None,
    ):
        self.task = task or task_of(config)
        given, limit = config, config.max_new_tokens or self.task.max_new_tokens
        self.config = config = replace(config, max_new_tokens=limit)
        self.policy = policy or load_policy(
            config.model,
            config.precision,
            config.device,
            lora_rank=config.lora_rank,
            seed=config.seed,
        )
        learned = self.policy.learned_tasks
        if learned is not None and config.task.removesuffix("-plain") not in learned:
            raise UserError(
                f"task: model {config.model!r} has learned only {', '.join(sorted(learned))}, "
                f"not {config.task}; choose another --task or --model"
            )
        self.sampler = Sampler(self.policy, config.sampler)
        self.constraint: NoConstraint = make_constraint(self.policy, config)
        self.gradients = Gradients(self.policy, self.constraint, config)
        self.optimiser = torch.optim.AdamW(self.policy.parameters(), lr=config.lr, weight_decay=0.0)
        told = "" if self.policy.refines_natively else self.task.instruction
        self.train_prompts = instructed(self.task.prompts("train"), told)
        self.heldout_prompts = instructed(self.task.prompts("heldout"), told)
        if isinstance(self.task, OwnTask) and config.data:  # said now, not in the middle of a run
            rows = [self.policy.encode_chat(p.messages) for p in instructed(self.task.rows, told)]
            check_fits(self.policy.model, rows, limit, f"{config.data}: row")
        if config.prompts > len(self.train_prompts):
            raise UserError(
                f"prompts: {config.prompts} a step, but there are only {len(self.train_prompts)}; "
                "lower it"
            )
        self.health = health.Health(config)
        self.done = 0  # steps
        self._saved = 0  # steps in the checkpoint
        self._whole = True  # False within a step, and after one that broke off
        self._touched = False  # whether the present step has changed a weight
        self.run = RunFolder.create(Path(out), given, resume) if out is not None else None
        place = Path("out") if self.run is None else self.run.path
        self.trackers = Trackers(config.trackers, place, config.to_dict())
        if self.run is not None and resume:
            with self.run.alone():
                self._resume(self.run)

    def train(self, progress: bool = True) -> list[Metrics]:
        """Run the remaining steps; return their metrics, the last evaluation included."""
        bar = tqdm(total=self.config.steps, initial=self.done, disable=not progress)
        bar.set_description(f"{self.config.task} {self.constraint.name}")
        history = []
        try:
            with bar:
                for metrics in self.steps():
                    history.append(metrics)
                    bar.update(self.done - bar.n)
                    if metrics.get("gold_reward") is not None:
                        bar.set_postfix(gold=f"{metrics['gold_reward']:.2f}")
        except KeyboardInterrupt:
            if self._whole:  # asked to stop between two steps
                raise KeyboardInterrupt(self._stopped()) from None
            raise
        self.trackers.finish()
        if told := self.health.summary():
            log.warning(told)
        return history

    def steps(self) -> Iterator[Metrics]:
        """Yield metrics step by step; step n describes the policy before its update n.

        After the last update comes one more, of evaluation alone, with step = steps.
        """
        with self.run.alone() if self.run is not None else nullcontext():
            while self.done < self.config.steps:
                if not self._whole:
                    raise UserError("the last step broke off: go on in a Trainer with resume=True")
                with whole_step() as stop:
                    self._whole = False
                    metrics = self._record(self._step_or_save())
                    self.done += 1
                    if self.done % self.config.save_every == 0 or self.done == self.config.steps:
                        self.save()
                    self._whole = True
                    if stop.requested:
                        self.save()  # undisturbed, as nothing is behind the block
                if stop.requested:
                    raise KeyboardInterrupt(self._stopped())
                try:
                    yield metrics
                except GeneratorExit:  # the caller wants no more, or was stopped
                    if self.run is not None:
                        log.warning(self._stopped())
                    raise
            last = self.config.steps
            if self.run is None or not any(m["step"] == last for m in self.run.metrics()):
                metrics = self._step_or_save()
                self.save(sound=True)
                yield self._record(metrics)

    def _step_or_save(self) -> Metrics:
        """The next step; where it fails before it has changed a weight, nothing before it is lost.

        A reward function that gives up in the night is such a failure. What diverged is not saved.
        """
        self._touched = False
        try:
            return self._step(self.done)
        except DivergedError as error:
            raise DivergedError(f"{error}; {self._kept()}") from None
        except UserError as error:
            if self.run is None or self._touched:
                raise
            raise UserError(f"{error}; {self._stopped()}") from error

    def _step(self, step: int) -> Metrics:
        """Evaluate where it is due, then learn; after the last update, evaluate alone."""
        metrics: Metrics = {"step": step, "coef": self.constraint.coef}
        if step % self.config.eval_every == 0 or step == self.config.steps:
            with health.evaluating(self.config, step):
                metrics |= self.evaluate(step)
        if step == self.config.steps:
            return metrics
        evaluated, start = "kl" in metrics, time.perf_counter()
        try:
            metrics |= self._learn(step) | ({"kl": metrics["kl"]} if evaluated else {})
            self.health.good(step, metrics.get("idle", ""))
        except BadStepError as error:
            metrics |= {"skipped": error.what, "task_reward": None}
            self.optimiser.zero_grad()
            self.health.bad(step, error)
        self.sampler.refresh()
        return metrics | {"seconds": time.perf_counter() - start}

    def _learn(self, step: int) -> Metrics:
        config = self.config
        rollouts, rewards, tokens = self._collect(step)
        pull = self.constraint.prepare(rollouts, seed=_seed(config.seed, step, "constraint"))
        health.check_refined([r.refined for r in (pull.refinements or {}).values()])
        kl = kl_of(rollouts, pull.ref_log_probs) if pull.ref_log_probs else None
        batch = Batch(rollouts, *self._advantages(rollouts, rewards, pull), pull)
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        measured: Metrics = {}
        for update in range(config.updates):
            measure = update == 0 and step % config.strength_every == 0
            sums, pull_size = self._update(batch, measure)
            measured |= pull_size
        self.constraint.after_step(
            step, None if kl is None else kl * len(rollouts) / rollouts.tokens
        )
        flat = float(zero_variance(rewards.view(-1, config.group)).float().mean())
        refused = pull.metrics.get("refused", 0.0)
        idle = health.idle_reason(config, flat, rollouts.finished, refused)
        return {
            "task_reward": float(rewards.mean()),
            "zero_variance": flat,
            "kl": kl if config.temperature == 1 and not config.reference_reset else None,
            "entropy": float(torch.cat(rollouts.entropy).mean()),
            "length": rollouts.tokens / len(rollouts),
            **measured,
            **pull.metrics,
            **sums,
            "tokens": tokens,
            **({"idle": idle} if idle else {}),
        }

    # One step, part by part

    def _collect(self, step: int) -> tuple[Rollouts, torch.Tensor, int]:
        """Rollouts of fresh prompts, their task rewards [rollouts], and how many tokens it took."""
        config = self.config
        rng = random.Random(_seed(config.seed, step, "prompts"))
        rollouts, rewards = self._draw(rng.sample(self.train_prompts, config.prompts), step, 0)
        tokens = rollouts.tokens
        for attempt in range(1, config.resample + 1):  # DAPO's dynamic sampling
            flat = zero_variance(rewards.view(-1, config.group)).nonzero()[:, 0].tolist()
            if not flat:
                break
            fresh = rng.sample(self.train_prompts, len(flat))
            more, more_rewards = self._draw(fresh, step, attempt)
            tokens += more.tokens
            for place, group in enumerate(flat):
                rollouts.replace_group(group, more, place)
                old = slice(group * config.group, (group + 1) * config.group)
                rewards[old] = more_rewards[place * config.group : (place + 1) * config.group]
        return rollouts, rewards, tokens

    def _draw(
        self, prompts: Sequence[Prompt], step: int, attempt: int
    ) -> tuple[Rollouts, torch.Tensor]:
        config = self.config
        rollouts = self.sampler.sample(
            prompts,
            group=config.group,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=_seed(config.seed, step, f"rollout {attempt}"),
        )
        scores = health.scores_of(
            self.task, rollouts.prompts, rollouts.responses, rollouts.finished, gold=False
        )
        rewards = torch.tensor([float(s.task_reward) for s in scores])
        health.check_rewards(rewards)
        return rollouts, rewards

    def _advantages(
        self, rollouts: Rollouts, rewards: torch.Tensor, pull: Pull
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        rewards = self.constraint.rewards(rewards, rollouts, pull)
        counted = torch.ones(len(rollouts))
        if config.overlong == "penalty":
            lengths = torch.tensor([float(len(ids)) for ids in rollouts.response_ids])
            cache = max(1, config.max_new_tokens // 4)
            rewards = rewards + overlong_penalty(lengths, config.max_new_tokens, cache)
        elif config.overlong == "filter":
            counted = torch.tensor([float(f) for f in rollouts.finished])
        advantages = group_advantages(rewards.view(-1, config.group), config.advantage)
        return advantages.flatten(), counted

    def _update(self, batch: Batch, measure: bool) -> tuple[Metrics, Metrics]:
        """One pass over the batch and one optimiser step; strength and pull where `measure`."""
        parameters = self.policy.parameters()
        sums, pulled = self.gradients.accumulate(batch, measure)
        measured = strength(parameters, pulled) if measure else {}
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        health.check_losses(self.config, sums, float(norm))
        self._touched = True
        self.optimiser.step()
        self.optimiser.zero_grad()
        health.check_weights(self.config, parameters)
        return sums | {"grad_norm": float(norm)}, measured

    # Evaluation and records

    def evaluate(self, step: int) -> Metrics:
        """Rewards, degenerate share and KL on held-out prompts, one response each, temperature 1.

        The last evaluation takes all held-out prompts.
        """
        config = self.config
        few = self.heldout_prompts[: config.eval_prompts]
        prompts = self.heldout_prompts if step == config.steps else few
        seed, rows = _seed(config.seed, step, "evaluate"), config.prompts * config.group
        rollouts = self.sampler.answer(prompts, rows, config.max_new_tokens, seed)
        scores = health.scores_of(self.task, prompts, rollouts.responses, rollouts.finished)
        if self.run is not None and config.samples:
            self._record_samples(step, rollouts, scores)
        with self.policy.reference():
            ref = score_targets(
                self.policy.model, rollouts.prompt_ids, rollouts.response_ids, config.token_budget
            )
        return {
            "task_reward": fmean(s.task_reward for s in scores),
            "gold_reward": fmean(s.gold_reward for s in scores),
            "heldout_task_reward": fmean(s.task_reward for s in scores),
            "kl": health.a_number("kl", kl_of(rollouts, ref)),
            "degenerate": fmean(s.degenerate for s in scores),
            **self.task.extra_metrics(prompts, rollouts.responses, scores),
        }

    def _record_samples(self, step: int, rollouts: Rollouts, scores: Sequence[Score]) -> None:
        few = range(min(self.config.samples, len(rollouts)))
        messages = [list(rollouts.prompts[i].messages) for i in few]
        refined = self.constraint.sample_refiner().refine_ids(
            messages, [rollouts.response_ids[i] for i in few]
        )
        assert self.run is not None
        for row in rollouts.records(step, [r.refined for r in refined], scores):
            self.run.sample(row)

    def _record(self, metrics: Metrics) -> Metrics:
        row = dict.fromkeys(KEYS) | metrics
        if self.run is not None:
            self.run.log(row)
        self.trackers.log(row)
        return row

    def save(self, sound: bool = False) -> None:
        """Write the checkpoint: adapter (PEFT), optimiser, and the step, which decides the rest.

        Not while steps are skipped, for the weights may be why, unless they are surely `sound`.
        """
        suspect = self.health.in_a_row > 0 and not sound
        if self.run is None or self._saved == self.done or suspect:
            return

        def write(folder: Path) -> None:
            self.policy.model.save_pretrained(str(folder))
            extra = {f"constraint.{k}": v for k, v in self.constraint.state().items()}
            extra["step"] = torch.tensor(self.done)
            save_state(folder / "state.safetensors", self.optimiser, extra)

        replace_folder(self.run.checkpoint, write)
        self._saved = self.done

    def _resume(self, run: RunFolder) -> None:
        found = find_folder(run.checkpoint)
        if found is not None:
            with reading(found):
                self.policy.model.load_adapter(str(found), "default", is_trainable=True)
                extra = load_state(found / "state.safetensors", self.optimiser)
                prefix = "constraint."
                self.constraint.load_state(
                    {k.removeprefix(prefix): v for k, v in extra.items() if k.startswith(prefix)}
                )
                self.done = self._saved = int(extra["step"])
            self.sampler.refresh()
        elif run.should_have_saved():
            raise UserError(
                f"{run.checkpoint}: is missing; restore it or start a new run in another --out"
            )
        run.cut(self.done)
        self.health.restore(run.metrics())

    def _stopped(self) -> str:
        """Save, and say so."""
        self.save()
        if self.run is None:
            return f"stopped before step {self.done}; nothing is saved without a run folder"
        if not self.done:
            return f"stopped before the first step; {self.run.path} can be used again"
        kept = f", saved in {self.run.path}" if self._saved == self.done else f"; {self._kept()}"
        return f"stopped before step {self.done}{kept}; --resume goes on"

    def _kept(self) -> str:
        if self.run is None or not self._saved:
            return "there is no checkpoint"
        return f"the checkpoint in {self.run.path} is of step {self._saved}"


def _seed(seed: int, step: int, what: str) -> int:
    """A number for everything random, from the run's seed, the step and the purpose."""
    return random.Random(f"{seed} {step} {what}").getrandbits(62)
