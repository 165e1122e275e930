"""Train any causal LM under the dynamic constraint with TRL: one GPU, many, or several nodes.

    accelerate launch examples/trl_dynamic.py --model Qwen/Qwen2.5-7B-Instruct --output_dir out/trl

Every field of TRL's GRPOConfig is an option too; docs/scaling.md shows launch lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, HfArgumentParser, set_seed

from rftkit import load_task
from rftkit.integrations.trl import DynamicConstraintConfig, DynamicConstraintGRPOTrainer
from rftkit.models import native, nf4_config
from rftkit.paths import TINY_MODEL
from rftkit.tasks.base import instructed


@dataclass
class Script:
    """What to train, and on what."""

    model: str = field(default="tiny", metadata={"help": "'tiny', a folder or a hub name"})
    task: str = field(default="dialogue", metadata={"help": "dialogue, code or game"})
    lora_rank: int = field(default=16, metadata={"help": "rank of the adapter"})
    four_bit: bool = field(default=False, metadata={"help": "hold the base in NF4; not with FSDP"})


def parser() -> HfArgumentParser:
    """The script's options and all of TRL's."""
    return HfArgumentParser((Script, DynamicConstraintConfig))


def reward_of(task: Any, prompts: list[Any], end: int, longest: int) -> Callable[..., list[float]]:
    """The task reward as TRL calls it; what training must not see is logged beside it."""

    def task_reward(
        row: list[int], completions: Any, completion_ids: Any, log_metric: Any, **_: Any
    ) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        finished = [len(ids) < longest or ids[-1] == end for ids in completion_ids]
        scores = task.score([prompts[i] for i in row], texts, finished)
        log_metric("gold_reward", sum(s.gold_reward for s in scores) / len(scores))
        log_metric("degenerate", sum(s.degenerate for s in scores) / len(scores))
        return [s.task_reward for s in scores]

    return task_reward


def train(script: Script, args: DynamicConstraintConfig) -> list[dict[str, Any]]:
    """Train, save the adapter, and return what TRL logged."""
    set_seed(args.seed)  # before the adapter draws its first weights
    path = str(TINY_MODEL) if script.model == "tiny" else script.model
    tokenizer = AutoTokenizer.from_pretrained(path)
    task = load_task(script.task)
    prompts = instructed(task.prompts("train"), "" if native(tokenizer) else task.instruction)
    nf4 = nf4_config(torch.bfloat16 if args.bf16 else torch.float32)
    trainer = DynamicConstraintGRPOTrainer(
        model=path,
        reward_funcs=reward_of(
            task, prompts, tokenizer.eos_token_id, args.max_completion_length or 0
        ),
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": list(p.messages), "row": i} for i, p in enumerate(prompts)]
        ),
        processing_class=tokenizer,
        quantization_config=nf4 if script.four_bit else None,
        peft_config=LoraConfig(
            r=script.lora_rank,
            lora_alpha=2 * script.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()  # the adapter in PEFT's format: `rftkit merge` makes a plain model of it
    return trainer.state.log_history


if __name__ == "__main__":
    train(*parser().parse_args_into_dataclasses())
