"""Train any causal LM under the dynamic constraint with TRL: one GPU, many, or several nodes.

    accelerate launch examples/trl_dynamic.py --model Qwen/Qwen2.5-7B-Instruct --output_dir out/trl

Every field of TRL's GRPOConfig is an option too; docs/scaling.md shows launch lines.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig, HfArgumentParser

from rftkit import load_task
from rftkit.integrations.trl import DynamicConstraintConfig, DynamicConstraintGRPOTrainer
from rftkit.models import native
from rftkit.paths import TINY_MODEL
from rftkit.tasks.base import instructed


@dataclass
class Script:
    """What to train, and on what."""

    model: str = field(default="tiny", metadata={"help": "'tiny', a folder or a hub name"})
    task: str = field(default="dialogue", metadata={"help": "dialogue, code or game"})
    lora_rank: int = field(default=16, metadata={"help": "rank of the adapter"})
    four_bit: bool = field(default=False, metadata={"help": "hold the base in NF4; not with FSDP"})


def main() -> None:
    script, args = HfArgumentParser((Script, DynamicConstraintConfig)).parse_args_into_dataclasses()
    path = str(TINY_MODEL) if script.model == "tiny" else script.model
    tokenizer = AutoTokenizer.from_pretrained(path)
    task = load_task(script.task)
    prompts = instructed(task.prompts("train"), "" if native(tokenizer) else task.instruction)
    rows = {p.text: p for p in prompts}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        known = [rows[messages[-1]["content"]] for messages in prompts]
        texts = [completion[0]["content"] for completion in completions]
        finished = [len(ids) < args.max_completion_length for ids in completion_ids]
        return [s.task_reward for s in task.score(known, texts, finished, gold=False)]

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if args.bf16 else torch.float32,
    )
    trainer = DynamicConstraintGRPOTrainer(
        model=path,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": list(p.messages)} for p in prompts]),
        processing_class=tokenizer,
        quantization_config=nf4 if script.four_bit else None,
        peft_config=LoraConfig(
            r=script.lora_rank,
            lora_alpha=2 * script.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model()  # the adapter in PEFT's format: `rftkit merge` makes a plain model of it


if __name__ == "__main__":
    main()
