"""What `rftkit bench` compares with: TRL's GRPOTrainer, and transformers' `generate`.

Both work on the same base, adapter shape, prompts and lengths as ours, as their users run them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig
from transformers import GenerationConfig, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.machine import synchronise
from rftkit.models import Policy, load_policy
from rftkit.rollout import left_pad
from rftkit.tasks import Prompt, Task


def load_plain(config: RunConfig) -> Policy:
    """The base in 4 bits with a fresh adapter, loaded a second time for the peer alone."""
    return load_policy(
        config.model, config.precision, config.device, lora_rank=config.lora_rank, seed=config.seed
    )


class Generate:
    """`generate` of transformers on the 4-bit model with its adapter; plain sampling."""

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt]):
        self.policy = load_plain(config)
        self.policy.model.eval()
        encoded = [self.policy.encode_chat(p.messages) for p in prompts]
        rows = [ids for ids in encoded for _ in range(config.group)]
        self.ids, self.mask = left_pad(rows, self.policy.pad_id, self.policy.device)
        self.settings = GenerationConfig(
            do_sample=True,
            temperature=config.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=sorted(self.policy.eos_ids),
            pad_token_id=self.policy.pad_id,
        )

    def sample(self, seed: int) -> int:
        """Respond to every prompt; returns the response tokens, EOS included."""
        torch.manual_seed(seed)
        out = self.policy.model.generate(
            input_ids=self.ids, attention_mask=self.mask, generation_config=self.settings
        )
        stop = self.policy.eos_ids
        rows = out[:, self.ids.shape[1] :].tolist()
        return sum(next((n for n, i in enumerate(row, 1) if i in stop), len(row)) for row in rows)


class _Clock(TrainerCallback):
    """Times each step of a Hugging Face trainer, from before its rollouts to after its update."""

    def __init__(self, device: torch.device, after: Callable[[float], None]):
        self.device, self.after, self.start = device, after, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronise(self.device)
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronise(self.device)
        self.after(time.perf_counter() - self.start)


def require_trl() -> None:
    """Raise UserError where TRL is not installed."""
    for name in ("datasets", "trl"):
        try:
            import_module(name)
        except ImportError:
            raise UserError(f"peer: {name} is missing; pip install 'rftkit[trl]'") from None


def run_trl(
    config: RunConfig,
    task: Task,
    prompts: Sequence[Prompt],
    steps: int,
    after: Callable[[float, int], None],
) -> dict[str, Any]:
    """Train `steps` steps with TRL's GRPOTrainer; returns its settings, to report them.

    after: called behind each step with its seconds and response tokens; the clock stands meanwhile.
    config.coef is β. Raises UserError where TRL is not installed.
    """
    require_trl()
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy = load_plain(config)
    base = policy.model.unload()  # TRL puts its own adapter on, as it would for its users
    known = {p.text: p for p in prompts}
    counts: list[int] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        counts.append(sum(map(len, completion_ids)))
        rows = [known[messages[-1]["content"]] for messages in prompts]
        texts = [completion[0]["content"] for completion in completions]
        finished = [ids[-1] in policy.eos_ids for ids in completion_ids]
        return [s.task_reward for s in task.score(rows, texts, finished, gold=False)]

    settings = trl_settings(config, steps, policy.device)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=base,
            reward_funcs=reward,
            args=GRPOConfig(output_dir=folder, **settings),
            train_dataset=Dataset.from_list([{"prompt": list(p.messages)} for p in prompts]),
            processing_class=policy.tokenizer,
            peft_config=LoraConfig(
                r=config.lora_rank,
                lora_alpha=2 * config.lora_rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[_Clock(policy.device, lambda seconds: after(seconds, counts[-1]))],
        )
        trainer.remove_callback(PrinterCallback)  # it prints on stdout
        trainer.train()
    return {"name": "trl", "version": version("trl"), "settings": settings}


def trl_settings(config: RunConfig, steps: int, device: torch.device) -> dict[str, Any]:
    """GRPOConfig's fields: one generation and one update a step, nothing logged or saved.

    Faster than TRL's defaults, which checkpoint gradients and compute in bf16 everywhere.
    """
    return {
        "per_device_train_batch_size": config.prompts * config.group,
        "gradient_accumulation_steps": 1,
        "num_generations": config.group,
        "max_completion_length": config.max_new_tokens,
        "beta": config.coef,
        "temperature": config.temperature,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant",
        "max_grad_norm": config.max_grad_norm,
        "max_steps": steps,
        "gradient_checkpointing": config.checkpointing,
        "bf16": device.type != "cpu",
        "use_cpu": device.type == "cpu",
        "shuffle_dataset": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": config.seed,
    }
