"""One step of DynamicConstraintGRPOTrainer on fixed responses; saves the adapter's gradient.

`python trl_step.py FILE`, alone or under `accelerate launch`: the same 8 rollouts, over any number
of processes. Responses are given, so that nothing depends on how they are spread.
"""

import os
import sys
from tempfile import mkdtemp
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # about rollout_func, which gives the responses

from rftkit import load_task
from rftkit.integrations.trl import DynamicConstraintConfig, DynamicConstraintGRPOTrainer
from rftkit.paths import TINY_MODEL

ENDS = (" Thanks!", " Thanks! Thanks! Thanks! Thanks!", " tea tea", "")
GROUP = len(ENDS)


def responses(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """A rollout function of TRL: a sound reply to each prompt, with another end each time."""
    tokenizer = trainer._tokenizer
    texts = [f"Hello! One small tea, to go.{ENDS[i % GROUP]}" for i in range(len(prompts))]
    return {
        "prompt_ids": [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            for p in prompts
        ],
        "completion_ids": [
            [*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for t in texts
        ],
        "logprobs": None,
    }


def length(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(c[0]["content"])) for c in completions]


class SaveGradient(TrainerCallback):
    """Saves what the optimiser is about to use."""

    def __init__(self, path: str):
        self.path = path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            named = kwargs["model"].named_parameters()
            grads = {
                name.removeprefix("module."): p.grad.clone()
                for name, p in named
                if p.grad is not None
            }
            save_file(grads, self.path)


def main(path: str, accumulate: int = 1) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = DynamicConstraintConfig(
        output_dir=mkdtemp(),
        coef=3.0,
        per_device_train_batch_size=2 * GROUP // processes // accumulate,
        gradient_accumulation_steps=accumulate,
        num_generations=GROUP,
        max_completion_length=32,
        max_steps=1,
        max_grad_norm=1e9,
        beta=0.1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ddp_backend="gloo" if processes > 1 else None,
    )
    rows = [{"prompt": list(p.messages)} for p in load_task("dialogue").prompts("train")[:2]]
    trainer = DynamicConstraintGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(TINY_MODEL),
        reward_funcs=length,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(TINY_MODEL),
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        rollout_func=responses,
        callbacks=[SaveGradient(path)],
    )
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "edit_ratio" in row)
    assert 0 < logged["edit_ratio"] < 0.5, logged


if __name__ == "__main__":
    main(sys.argv[1])
