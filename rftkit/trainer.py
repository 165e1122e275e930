"""The training loop: prompts → rollouts → scores → advantages → constraint → loss → update.

One update a step by default, on-policy. Everything random in step n follows from (seed, n), so a
resumed run repeats the uninterrupted one bit for bit. Left out, compared with large engines: several
machines, asynchronous sampling, sequence packing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from rftkit.config import RunConfig
from rftkit.constraints import MicroBatch, NoConstraint, Pull, make_constraint
from rftkit.models import Policy, load_policy
from rftkit.objectives import (
    group_advantages,
    normaliser,
    overlong_penalty,
    policy_gradient_loss,
    truncated_weights,
    zero_variance,
)
from rftkit.refiner import OnlineRefiner
from rftkit.rollout import Rollouts, Sampler
from rftkit.runs import RunFolder
from rftkit.scoring import micro_batches, pad_rows, score_targets, target_log_probs
from rftkit.state import find_folder, load_state, replace_folder, save_state
from rftkit.tasks import Prompt, Score, Task, load_task

Metrics = dict[str, Any]


@dataclass
class Batch:
    """One step's rollouts with what the loss needs; `old` is filled by the first pass over it."""

    rollouts: Rollouts
    advantages: torch.Tensor  # [rollouts]
    counted: torch.Tensor  # [rollouts], 0 where the policy gradient leaves a response out
    pull: Pull
    old: dict[int, torch.Tensor]


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
        self.task = task or load_task(config.task)
        limit = config.max_new_tokens or self.task.max_new_tokens
        self.config = config = replace(config, max_new_tokens=limit)
        self.policy = policy or load_policy(
            config.model,
            config.precision,
            config.device,
            lora_rank=config.lora_rank,
            seed=config.seed,
        )
        self.sampler = Sampler(self.policy, config.sampler)
        self.constraint: NoConstraint = make_constraint(self.policy, config)
        self.optimiser = torch.optim.AdamW(self.policy.parameters(), lr=config.lr, weight_decay=0.0)
        if config.checkpointing:
            self.policy.model.train()  # transformers checkpoints only in train mode
            self.policy.model.gradient_checkpointing_enable()
        self.train_prompts = self.task.prompts("train")
        self.heldout_prompts = self.task.prompts("heldout")
        self.done = 0  # steps
        self.run = RunFolder.create(Path(out), config, resume) if out is not None else None
        if self.run is not None and resume:
            self._resume(self.run)

    def train(self, progress: bool = True) -> list[Metrics]:
        """Run the remaining steps; return their metrics, the last evaluation included."""
        bar = tqdm(total=self.config.steps, initial=self.done, disable=not progress)
        bar.set_description(f"{self.config.task} {self.constraint.name}")
        history = []
        with bar:
            for metrics in self.steps():
                history.append(metrics)
                bar.n = self.done
                if metrics.get("gold_reward") is not None:
                    bar.set_postfix(gold=f"{metrics['gold_reward']:.2f}")
        return history

    def steps(self) -> Iterator[Metrics]:
        """Yield metrics step by step; step n describes the policy before its update n.

        After the last update comes one more, of evaluation alone, with step = steps.
        """
        config = self.config
        while self.done < config.steps:
            metrics = self._step(self.done)
            self.done += 1
            self._record(metrics)
            if self.done % config.save_every == 0 or self.done == config.steps:
                self.save()
            yield metrics
        if self.run is None or not any(m["step"] == config.steps for m in self.run.metrics()):
            metrics = {"step": config.steps, **self.evaluate(config.steps)}
            self._record(metrics)
            yield metrics

    def _step(self, step: int) -> Metrics:
        config, start = self.config, time.perf_counter()
        metrics: Metrics = {"step": step}
        if step % config.eval_every == 0:
            metrics |= self.evaluate(step)
        rollouts, rewards = self._collect(step)
        pull = self.constraint.prepare(rollouts, seed=_seed(config.seed, step, "constraint"))
        kl = self._kl(rollouts, pull, step)
        batch = Batch(rollouts, *self._advantages(rollouts, rewards, pull), pull, {})
        for group in self.optimiser.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        strength = None
        for update in range(config.updates):
            measure = update == 0 and step % config.strength_every == 0
            losses, strength_now = self._update(batch, measure)
            strength = strength_now if measure else strength
        self.sampler.refresh()
        self.constraint.after_step(step, None if kl is None else kl * len(rollouts) / rollouts.tokens)
        return metrics | {
            "task_reward": float(rewards.mean()),
            "zero_variance": float(zero_variance(rewards.view(-1, config.group)).float().mean()),
            "kl": kl,
            "entropy": float(torch.cat(rollouts.entropy).mean()),
            "length": rollouts.tokens / len(rollouts),
            "strength": strength,
            **pull.metrics,
            **losses,
            "tokens": rollouts.tokens,
            "seconds": time.perf_counter() - start,
        }

    # One step, part by part

    def _collect(self, step: int) -> tuple[Rollouts, torch.Tensor]:
        """Rollouts of fresh prompts and their task rewards [rollouts]."""
        config = self.config
        rng = random.Random(_seed(config.seed, step, "prompts"))
        rollouts, rewards = self._draw(rng.sample(self.train_prompts, config.prompts), step, 0)
        for attempt in range(1, config.resample + 1):  # DAPO's dynamic sampling
            flat = zero_variance(rewards.view(-1, config.group)).nonzero()[:, 0].tolist()
            if not flat:
                break
            more, more_rewards = self._draw(rng.sample(self.train_prompts, len(flat)), step, attempt)
            for place, group in enumerate(flat):
                _replace_group(rollouts, group, more, place)
                old = slice(group * config.group, (group + 1) * config.group)
                rewards[old] = more_rewards[place * config.group : (place + 1) * config.group]
        return rollouts, rewards

    def _draw(self, prompts: Sequence[Prompt], step: int, attempt: int) -> tuple[Rollouts, torch.Tensor]:
        config = self.config
        rollouts = self.sampler.sample(
            prompts,
            group=config.group,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=_seed(config.seed, step, f"rollout {attempt}"),
        )
        scores = self.task.score(rollouts.prompts, rollouts.responses, rollouts.finished, gold=False)
        return rollouts, torch.tensor([s.task_reward for s in scores])

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
        advantages = group_advantages(rewards.view(-1, config.group), config.advantage)  # type: ignore[arg-type]
        return advantages.flatten(), counted

    def _kl(self, rollouts: Rollouts, pull: Pull, step: int) -> float | None:
        """KL(π‖π_ref) in nats a response, by k1; where the constraint has no use for the
        reference's log-probs, only at evaluations."""
        if pull.ref_log_probs is None:
            if step % self.config.eval_every:
                return None
            with self.policy.reference():
                ref = score_targets(
                    self.policy.model,
                    rollouts.prompt_ids,
                    rollouts.response_ids,
                    self.config.token_budget,
                    self.config.temperature,
                )
        else:
            ref = pull.ref_log_probs
        pairs = zip(rollouts.log_probs, ref, strict=True)
        return fmean(float((p - r).sum()) for p, r in pairs)

    def _update(self, batch: Batch, measure: bool) -> tuple[Metrics, float | None]:
        """One pass over the batch and one optimiser step; the strength where `measure`."""
        losses: Metrics = {"policy_loss": 0.0, "constraint_loss": 0.0, "clip_fraction": 0.0}
        pulled: list[torch.Tensor] | None = None
        parameters = self.policy.parameters()
        for policy_loss, constraint_loss, clipped in self._losses(batch):
            losses["policy_loss"] += float(policy_loss.detach())
            losses["clip_fraction"] += clipped
            loss = policy_loss
            if constraint_loss is not None:
                losses["constraint_loss"] += float(constraint_loss.detach())
                if measure:
                    grads = torch.autograd.grad(constraint_loss, parameters, retain_graph=True)
                    pulled = list(grads) if pulled is None else [a + b for a, b in zip(pulled, grads, strict=True)]
                loss = loss + constraint_loss
            loss.backward()
        strength = self._strength(pulled) if measure else None
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return losses | {"grad_norm": float(norm)}, strength

    def _strength(self, pulled: list[torch.Tensor] | None) -> float:
        """‖g_constraint‖ / (‖g_constraint‖ + ‖g_policy‖), from the sum that backward left."""
        if pulled is None:
            return 0.0
        total = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.policy.parameters()]
        constraint = float(torch.nn.utils.get_total_norm(pulled))
        policy = float(torch.nn.utils.get_total_norm([t - c for t, c in zip(total, pulled, strict=True)]))
        return constraint / (constraint + policy) if constraint + policy else 0.0

    def _losses(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, float]]:
        """(policy loss, constraint loss, clip fraction) of each micro-batch; they add up to the batch's.

        A sequence is read once, however many rollouts and refined responses are the same.
        """
        config, rollouts, pull = self.config, batch.rollouts, batch.pull
        device = self.policy.device
        uses = _unique(rollouts, pull)
        keys = list(uses)
        lengths = [len(context) + len(target) for context, target in keys]
        counts = torch.tensor([len(ids) for ids in rollouts.response_ids])
        mask = pad_rows([c * torch.ones(len(ids)) for c, ids in zip(batch.counted, rollouts.response_ids, strict=True)], int(counts.max()), device)
        total = float(normaliser(mask, config.aggregate, config.max_new_tokens))  # type: ignore[arg-type]
        tokens = float(mask.sum().clamp(min=1))
        refined = pull.refinements or []
        sft_total = float(max(1, sum(len(refined[i].refined_ids) for i in pull.sft_rows)))
        for group in micro_batches(lengths, config.token_budget):
            part = [keys[i] for i in group]
            logp, seen = target_log_probs(
                self.policy.model, [c for c, _ in part], [t for _, t in part], config.temperature
            )  # [sequences, seq]
            rows = [row for key in part for row in uses[key][0]]
            place = [n for n, key in enumerate(part) for _ in uses[key][0]]
            width = logp.shape[1]
            row_logp, row_mask = logp[place], seen[place] * batch.counted.to(device)[rows][:, None]
            for row, values in zip(rows, row_logp.detach(), strict=True):
                batch.old.setdefault(row, values[: int(counts[row])].cpu())
            old = pad_rows([batch.old[row] for row in rows], width, device)
            sampled = pad_rows([rollouts.log_probs[row] for row in rows], width, device)
            policy = policy_gradient_loss(
                row_logp,
                old,
                batch.advantages.to(device)[rows],
                row_mask,
                config.clip_low,
                config.clip_high,
                config.aggregate,  # type: ignore[arg-type]
                weights=truncated_weights(old, sampled, config.importance_cap),
                total=total,
            )
            ref = pull.ref_log_probs
            learn = [n for n, key in enumerate(part) if uses[key][1]]
            constraint = self.constraint.loss(
                MicroBatch(
                    logp=row_logp,
                    ref_logp=pad_rows([ref[row] for row in rows], width, device) if ref else None,
                    mask=row_mask,
                    total=tokens,
                    sft_logp=logp[learn],
                    sft_mask=seen[learn],
                    sft_count=torch.tensor([float(uses[part[n]][1]) for n in learn], device=device),
                    sft_total=sft_total,
                )
            )
            yield policy.loss, constraint, float(policy.clip_fraction) * float(row_mask.sum()) / tokens

    # Evaluation and records

    def evaluate(self, step: int) -> Metrics:
        """Gold reward, task reward and degenerate share on held-out prompts, temperature 1."""
        config = self.config
        prompts = self.heldout_prompts[: config.eval_prompts]
        rollouts = self.sampler.sample(
            prompts,
            group=1,
            max_new_tokens=config.max_new_tokens,
            temperature=1.0,
            seed=_seed(config.seed, step, "evaluate"),
        )
        scores = self.task.score(prompts, rollouts.responses, rollouts.finished)
        if self.run is not None and config.samples:
            self._record_samples(step, rollouts, scores)
        return {
            "gold_reward": fmean(s.gold_reward for s in scores),
            "heldout_task_reward": fmean(s.task_reward for s in scores),
            "degenerate": fmean(s.degenerate for s in scores),
            **self.task.extra_metrics(prompts, rollouts.responses, scores),
        }

    def _record_samples(self, step: int, rollouts: Rollouts, scores: Sequence[Score]) -> None:
        few = range(min(self.config.samples, len(rollouts)))
        refined: list[str | None] = [None for _ in few]
        if self.policy.refines_natively:
            refiner = OnlineRefiner(self.policy, self.config.max_new_tokens)
            messages = [list(rollouts.prompts[i].messages) for i in few]
            out = refiner.refine_ids(messages, [rollouts.response_ids[i] for i in few])
            refined = [r.refined for r in out]
        assert self.run is not None
        for i in few:
            self.run.sample(
                {
                    "step": step,
                    "prompt": rollouts.prompts[i].text,
                    "response": rollouts.responses[i],
                    "refined": refined[i],
                    "task_reward": scores[i].task_reward,
                    "gold_reward": scores[i].gold_reward,
                }
            )

    def _record(self, metrics: Metrics) -> None:
        if self.run is not None:
            self.run.log(metrics)

    def save(self) -> None:
        """Write the checkpoint: adapter (PEFT), optimiser, and the step, which fixes all that is random."""
        if self.run is None:
            return

        def write(folder: Path) -> None:
            self.policy.model.save_pretrained(str(folder))
            extra = {f"constraint.{k}": v for k, v in self.constraint.state().items()}
            extra["step"] = torch.tensor(self.done)
            save_state(folder / "state.safetensors", self.optimiser, extra)

        replace_folder(self.run.checkpoint, write)

    def _resume(self, run: RunFolder) -> None:
        found = find_folder(run.checkpoint)
        if found is not None:
            self.policy.model.load_adapter(str(found), "default", is_trainable=True)
            extra = load_state(found / "state.safetensors", self.optimiser)
            prefix = "constraint."
            self.constraint.load_state(
                {k.removeprefix(prefix): v for k, v in extra.items() if k.startswith(prefix)}
            )
            self.done = int(extra["step"])
            self.sampler.refresh()
        run.cut(self.done)


def _unique(
    rollouts: Rollouts, pull: Pull
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[list[int], int]]:
    """Each different (context, target) with the rollouts it is and how often it is a refined response."""
    contexts = [tuple(ids) for ids in rollouts.prompt_ids]
    uses: dict[Any, tuple[list[int], int]] = {}
    for row, ids in enumerate(rollouts.response_ids):
        uses.setdefault((contexts[row], tuple(ids)), ([], 0))[0].append(row)
    for row in pull.sft_rows:
        assert pull.refinements is not None
        key = (contexts[row], tuple(pull.refinements[row].refined_ids))
        rows, count = uses.get(key, ([], 0))
        uses[key] = (rows, count + 1)
    return uses


def _replace_group(into: Rollouts, group: int, source: Rollouts, place: int) -> None:
    old, new = slice(group * into.group, (group + 1) * into.group), slice(place * into.group, (place + 1) * into.group)
    for name in ("prompts", "prompt_ids", "response_ids", "responses", "finished", "log_probs", "entropy"):
        getattr(into, name)[old] = getattr(source, name)[new]


def _seed(seed: int, step: int, what: str) -> int:
    """A number for everything random, from the run's seed, the step and the purpose."""
    return random.Random(f"{seed} {step} {what}").getrandbits(62)
