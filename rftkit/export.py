"""Out again: an adapter merged into its base, as a model that plain transformers loads.

What is written is the policy that was trained: a base held in 4 bits is merged as its 4-bit values
read, not as the weights it was once quantised from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rftkit.config import RunConfig
from rftkit.errors import UserError
from rftkit.files import find_folder, replace_folder, write_text
from rftkit.models import load_policy, nf4_config
from rftkit.rollout import DenseCopy
from rftkit.runs import RunFolder
from rftkit.state import reading


def merge_run(run: Path, out: Path, four_bit: bool = False) -> None:
    """Write the policy of a run folder, with a model card, to `out`.

    Raises UserError where the folder holds no run or no checkpoint yet.
    """
    folder = RunFolder(run)
    config = folder.config()
    adapter = find_folder(folder.checkpoint)
    if adapter is None:
        raise UserError(f"{run}: has no checkpoint yet; train at least {config.save_every} steps")
    merge(config.model, adapter, out, config.precision, four_bit)
    done = _trained_steps(adapter)
    rows = [row for row in folder.metrics() if row["step"] <= done]  # the run may be further on
    write_text(out / "README.md", model_card(config, rows, done, four_bit))


def _trained_steps(checkpoint: Path) -> int:
    with reading(checkpoint), safe_open(checkpoint / "state.safetensors", "pt") as state:
        return int(state.get_tensor("step"))


def merge(
    model: str, adapter: Path, out: Path, precision: str = "nf4", four_bit: bool = False
) -> None:
    """Write base + adapter to `out`: dense weights, or NF4 with `four_bit`, and the tokenizer.

    precision: that of the base while the adapter was trained. Raises UserError where the adapter
    cannot be read or `out` is not empty.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: no adapter_config.json; give a folder saved by PEFT")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose another --out")
    policy = load_policy(model, precision, adapter=adapter)
    dense = DenseCopy(policy).net
    dense.generation_config = policy.model.generation_config

    def write(new: Path) -> None:
        with TemporaryDirectory() as folder:
            dense.save_pretrained(folder if four_bit else new)
            if four_bit:
                nf4 = nf4_config(torch.float32)
                AutoModelForCausalLM.from_pretrained(
                    folder, quantization_config=nf4, device_map="auto"
                ).save_pretrained(new)
        policy.tokenizer.save_pretrained(new)

    replace_folder(out, write)


def model_card(
    config: RunConfig, metrics: list[dict[str, Any]], steps: int, four_bit: bool = False
) -> str:
    """README.md of a merged model: what it was trained on, how far it came, what it is not.

    metrics: rows of the run up to `steps`, the updates that the model has had.
    """
    measured = [row for row in metrics if row["gold_reward"] is not None]
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [rftkit]"]
    if "/" in config.model and not Path(config.model).exists():
        front.append(f"base_model: {config.model}")
    reward = f"`{config.reward}`" if config.reward else "the task's own"
    trained = (
        f"Trained by reinforcement learning with rftkit: task `{config.task}`, reward {reward}, "
        f"constraint `{config.constraint}`, coefficient {_number(metrics, 'coef')}, "
        f"{steps} step{'s' * (steps != 1)} of {config.prompts} × {config.group} rollouts, learning "
        f"rate {config.lr:g}, adapter of rank {config.lora_rank} on a base in {config.precision}, "
        f"seed {config.seed}."
    )
    lines = [
        *front,
        "---",
        f"# {Path(config.model).name}, fine-tuned on {config.task}",
        "",
        trained,
        "",
        "The adapter is merged into the base, which was "
        + (
            "quantised to NF4 again, so outputs can differ a little."
            if four_bit
            else "dequantised."
        ),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this folder")',
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        "```",
    ]
    if measured:
        lines += ["", "On held-out prompts:", "", "| | before | after |", "|---|---|---|"]
        for key, name in _FIGURES.items():
            first, last = (_figure(row, key) for row in (measured[0], measured[-1]))
            lines.append(f"| {name} | {first} | {last} |")
    lines += [
        "",
        "The gold reward is what training never saw. Only the figures above were measured;",
        "nothing is known of other tasks, of other languages or of safety.",
    ]
    return "\n".join(lines) + "\n"


_FIGURES = {
    "task_reward": "task reward",
    "gold_reward": "gold reward",
    "degenerate": "degenerate share",
    "kl": "KL from the reference, nats a response",
}


def _figure(row: Mapping[str, Any], key: str) -> str:
    value = row.get("heldout_task_reward" if key == "task_reward" else key)
    return "–" if value is None else f"{value:.3f}"


def _number(metrics: list[dict[str, Any]], key: str) -> str:
    return f"{metrics[-1][key]:g}" if metrics and metrics[-1][key] is not None else "unknown"
