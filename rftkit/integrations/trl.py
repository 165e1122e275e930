"""The dynamic constraint on TRL's GRPOTrainer, for several GPUs, DeepSpeed, FSDP and vLLM.

A thin subclass: TRL generates, scores and computes the policy's loss; we refine the rollouts and
add λ · SFT toward the refined responses. It needs a LoRA adapter, since the base is the refiner.
Not covered: images and tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad, use_adapter

from rftkit.errors import UserError
from rftkit.instruct import RULES
from rftkit.models import Policy
from rftkit.objectives import sft_loss
from rftkit.own_refiner import OwnRefiner
from rftkit.refiner import OnlineRefiner, Refinement

TRL_VERSIONS = ("1.16", "1.17")  # from, below: we override two of its private methods


@dataclass
class DynamicConstraintConfig(GRPOConfig):
    """GRPOConfig with the dynamic constraint's settings."""

    coef: float = field(default=3.0, metadata={"help": "λ, weight of the SFT loss; 0 = plain GRPO"})
    edit_limit: float = field(
        default=0.5,
        metadata={"help": "an instruct model's refinement with a larger edit ratio is refused"},
    )
    refiner: str = field(
        default="",
        metadata={"help": "a refiner of your own, MODULE:FUNCTION (rftkit/own_refiner.py)"},
    )
    refiner_rules: str = field(
        default=RULES, metadata={"help": "what an instruct model is told before it refines"}
    )


class _Reference(Policy):
    """A model in TRL's hands as our refiner: the adapter off, or the first one, kept as "ref"."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        first = "ref" if "ref" in self.model.peft_config else None
        with torch.no_grad(), use_adapter(self.model, first):
            yield


class DynamicConstraintGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose loss is TRL's, whatever its `loss_type` and β, + λ · SFT loss.

    The SFT loss is a mean over all refined tokens of the batch of all processes, EOS included.
    Raises UserError without an adapter, and where another version of TRL is installed.
    """

    args: Any  # a DynamicConstraintConfig; the classes above us declare less
    model: Any
    max_completion_length: Any

    def __init__(self, *args: Any, **settings: Any):
        low, high = map(Version, TRL_VERSIONS)
        if not low <= Version(version("trl")) < high:
            raise UserError(f"trl: {version('trl')} is installed; pip install 'trl=={low}.*'")
        super().__init__(*args, **settings)
        if not isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            raise UserError("peft_config: give a LoRA adapter; the base without it is the refiner")
        policy = Policy(self.model, self._tokenizer, "", "as loaded")
        own = self.args.refiner
        self._own = OwnRefiner(policy, own, self.max_completion_length) if own else None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.args.coef == 0:
            return output
        responses = [self._response(row) for row in output["completion_ids"].tolist()]
        refined = self._refine([x["prompt"] for x in inputs], responses)
        rows = [torch.tensor(r.refined_ids, device=self.accelerator.device) for r in refined]
        output["refined_ids"] = pad(rows, padding_value=self._tokenizer.pad_token_id)
        output["refined_mask"] = pad([torch.ones_like(row) for row in rows], padding_value=0)
        output["refined_total"] = self.accelerator.gather(output["refined_mask"].sum()).sum()
        self._log_refined(refined)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if self.args.coef == 0:
            return loss
        ids, mask = inputs["refined_ids"], inputs["refined_mask"]
        logp, _, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], ids], 1),
            torch.cat([inputs["prompt_mask"], mask], 1),
            ids.shape[1],
        )  # [rows, refined tokens]
        # As TRL's "dapo": gradients are averaged over processes and added up over micro-batches.
        total = inputs["refined_total"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            share = self.current_gradient_accumulation_steps / self.args.steps_per_generation
            total = total * share
        pull = sft_loss(logp, mask, total)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["sft_loss"].append(self.accelerator.gather(pull.detach()).mean().item())
        return loss + self.args.coef * pull

    def _refine(
        self, prompts: Sequence[list[dict[str, str]]], responses: Sequence[list[int]]
    ) -> list[Refinement]:
        """Refine this process's rollouts; where weights are sharded they are gathered first."""
        if not all(isinstance(prompt, list) for prompt in prompts):
            raise UserError("prompt: must be a list of messages; the refiner asks in a chat")
        if self._own is not None:  # a function, for which no weights need to be gathered
            return self._own.refine_ids(prompts, responses)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            reference = _Reference(model, self._tokenizer, model.config.name_or_path, "as loaded")
            settings = self.args.edit_limit, self.args.refiner_rules
            refiner = OnlineRefiner(reference, self.max_completion_length, *settings)
            return refiner.refine_ids(prompts, responses)

    def _response(self, row: list[int]) -> list[int]:
        """A completion without padding: up to its EOS, else up to the last token that counts."""
        end = next((i for i, token in enumerate(row, 1) if token in self.eos_token_ids), len(row))
        row = row[:end]
        while row and row[-1] == self._tokenizer.pad_token_id and row[-1] not in self.eos_token_ids:
            row.pop()
        return row

    def _log_refined(self, refined: Sequence[Refinement]) -> None:
        numbers = torch.tensor(
            [[r.edit_ratio, float(r.changed), float(bool(r.fallback))] for r in refined],
            device=self.accelerator.device,
        )  # [rows, 3]
        means = self.accelerator.gather(numbers).mean(0).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in zip(("edit_ratio", "changed", "refused"), means, strict=True):
            metrics[name].append(value)
