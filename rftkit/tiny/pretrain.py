"""The recipe of the embedded model: tokenizer and Llama weights from a seed, on two CPU cores.

One pass over the endless corpus of `corpus.py`, loss on responses and refined responses only.
Resumes from its last checkpoint; the same seed gives the same model on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rftkit.chat import encode_chat, encode_text
from rftkit.errors import UserError
from rftkit.files import find_folder, replace_folder, write_text, writing
from rftkit.guard import sole_writer, whole_step
from rftkit.models import load_policy
from rftkit.state import load_state, reading, save_state
from rftkit.tasks import Task, load_task
from rftkit.tiny.corpus import Example, batch, texts
from rftkit.tiny.muon import Muon
from rftkit.tiny.quality import card, measure
from rftkit.tiny.tokenizer import train_tokenizer


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights."""

    # In turn; named twice, a task is shown twice as often. A late stage has its own list.
    tasks: tuple[str, ...] = ("dialogue", "code", "game", "code", "game")
    seed: int = 0
    steps: int = 15_400
    # (step, share of its peak) of the learning rate, straight lines in between
    knots: tuple[tuple[int, float], ...] = (
        (0, 0.01), (99, 1.0), (4940, 1.0), (6799, 0.301), (6850, 0.6),
        (11_000, 0.0276), (11_050, 0.4), (12_400, 0.0516), (12_450, 0.4),
        (13_400, 0.0696), (13_450, 0.4), (15_400, 0.0),
    )  # fmt: skip
    batch: int = 80  # examples a step
    micro_batches: int = 6  # sorted by length, so that little is padding
    lr: float = 3e-3  # peak of AdamW
    muon_lr: float = 1e-2  # peak of Muon
    weight_decay: float = 0.1
    vocab_size: int = 768
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    intermediate: int = 512
    context: int = 512
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 0")


def pretrain(config: PretrainConfig, out: Path, progress: bool = True) -> Path:
    """Train (or go on training) in `out`; return the folder of the finished model.

    Raises UserError where `out` holds a run of another configuration.
    """
    tasks = [load_task(name) for name in config.tasks]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    _claim(out / "pretrain.json", config)
    with sole_writer(out / "pretrain.json"):
        return _train(config, tasks, out, progress)


def write_card(folder: Path, tasks: Sequence[str], prompts: int = 128) -> dict[str, Any]:
    """Measure the model in `folder` on held-out prompts; write quality.json and the model card."""
    policy = load_policy(str(folder), "nf4", "cpu")
    figures = {n: measure(policy, load_task(n), prompts) for n in dict.fromkeys(tasks)}
    write_text(folder / "quality.json", json.dumps(figures, indent=1) + "\n")
    write_text(folder / "README.md", card(figures, facts(folder)))
    return figures


def facts(folder: Path) -> dict[str, Any]:
    """What the model card says besides the measured figures."""
    recipe = json.loads((folder / "pretrain.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    count = sum(tensor.numel() for tensor in load_file(weights).values())
    return {
        "architecture": "Llama, {hidden} wide, {layers} layers, {heads} heads".format(**recipe),
        "parameters": f"{count:,}, stored in bf16 ({weights.stat().st_size / 1e6:.1f} MB)",
        "tokenizer": "byte-level BPE, {vocab_size} tokens".format(**recipe),
        "tasks": ", ".join(dict.fromkeys(recipe["tasks"])),
        "trained on": "{steps} batches of {batch} generated texts, seed {seed}".format(**recipe),
    }


def example_ids(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """(context ids, target ids) of one training text; the target ends in EOS."""
    messages: list[dict[str, Any]] = list(example.prompt.messages)
    if example.draft is not None:
        messages.append({"role": "draft", "content": example.draft})
    target = [*encode_text(tokenizer, example.target), tokenizer.eos_token_id]
    return encode_chat(tokenizer, messages), target


def _train(config: PretrainConfig, tasks: Sequence[Task], out: Path, progress: bool) -> Path:
    tokenizer = _tokenizer(config, tasks, out / "tokenizer")
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(_llama(config, tokenizer))
    optimisers = _optimisers(model, config)
    done = _resume(out / "checkpoint", model, optimisers)
    bar = tqdm(
        range(done, config.steps), "pretrain", config.steps, initial=done, disable=not progress
    )
    for step in bar:
        share = float(np.interp(step, *np.transpose(config.knots)))
        for optimiser, peak in zip(optimisers, (config.muon_lr, config.lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * share
        with whole_step() as stop:
            examples = batch(tasks, config.batch, config.seed, step)
            loss = _update(model, tokenizer, optimisers, examples, config.micro_batches)
        bar.set_postfix(loss=f"{loss:.3f}")
        if not math.isfinite(loss):
            raise UserError(f"pre-training diverged at step {step}: lower lr (now {config.lr})")
        if stop.requested or ((step + 1) % config.save_every == 0 and step + 1 < config.steps):
            _save(out / "checkpoint", model, optimisers, step + 1)
        if stop.requested:
            raise KeyboardInterrupt(f"stopped, saved in {out}; the same command goes on")
    replace_folder(out / "model", lambda folder: _export(folder, model, tokenizer, config))
    return out / "model"


def _update(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimisers: Sequence[torch.optim.Optimizer],
    examples: Sequence[Example],
    micro_batches: int,
) -> float:
    pairs = sorted((example_ids(tokenizer, e) for e in examples), key=lambda p: len(p[0] + p[1]))
    total = sum(len(target) for _, target in pairs)
    size = math.ceil(len(pairs) / micro_batches)
    losses = 0.0
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        width = max(len(context) + len(target) for context, target in part)
        ids = torch.full((len(part), width), tokenizer.pad_token_id)
        labels = torch.full((len(part), width), -100)
        for row, (context, target) in enumerate(part):
            end = len(context) + len(target)
            ids[row, :end] = torch.tensor(context + target)
            labels[row, len(context) : end] = torch.tensor(target)
        keep = labels[:, 1:] != -100  # [rows, width-1]: logits only where there is a target
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][keep]
        loss = cross_entropy(model.lm_head(hidden), labels[:, 1:][keep], reduction="sum") / total
        loss.backward()
        losses += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()
    return losses


def _llama(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def _optimisers(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (Jordan et al., 2024), AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    decay = config.weight_decay
    return [
        Muon(matrices, config.muon_lr, decay),
        torch.optim.AdamW(rest, config.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _claim(path: Path, config: PretrainConfig) -> None:
    mine = json.loads(json.dumps(asdict(config)))
    if path.exists():
        with reading(path):
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        changed = [key for key, value in mine.items() if theirs.get(key) != value]
        if changed:
            raise UserError(
                f"{path.parent}: holds a pre-training run with another {', '.join(changed)}; "
                "choose another --out or the same settings"
            )
    else:
        write_text(path, json.dumps(mine, indent=1) + "\n")


def _tokenizer(
    config: PretrainConfig, tasks: Sequence[Task], folder: Path
) -> PreTrainedTokenizerFast:
    if not folder.exists():
        learned = train_tokenizer(texts(tasks, 4000, config.seed), config.vocab_size)
        replace_folder(folder, learned.save_pretrained)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _save(
    folder: Path,
    model: LlamaForCausalLM,
    optimisers: Sequence[torch.optim.Optimizer],
    step: int,
) -> None:
    def write(new: Path) -> None:
        model.save_pretrained(new)
        for i, optimiser in enumerate(optimisers):
            save_state(new / f"state{i}.safetensors", optimiser, {"step": torch.tensor(step)})

    replace_folder(folder, write)


def _resume(
    folder: Path, model: LlamaForCausalLM, optimisers: Sequence[torch.optim.Optimizer]
) -> int:
    """Load the last checkpoint into model and optimisers; return the steps already done."""
    found = find_folder(folder)
    if found is None:
        return 0
    with reading(found):
        model.load_state_dict(LlamaForCausalLM.from_pretrained(found).state_dict())
        extra = [load_state(found / f"state{i}.safetensors", o) for i, o in enumerate(optimisers)]
        return int(extra[0]["step"])


def _export(
    folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, config: PretrainConfig
) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _claim(folder / "pretrain.json", config)
