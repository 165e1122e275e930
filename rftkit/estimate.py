"""Predicted peak memory of a run, by part, from a model's configuration alone: no weights needed.

The formulae count tensors, in bytes, of a decoder like Llama, Qwen or Mistral (gated MLP, RMSNorm,
grouped attention) that trains as `rftkit.trainer` does; each stands where it is computed. Longest
prompts and responses are assumed throughout. Not counted: the program itself, the CUDA context and
what an allocator wastes, for which `RESERVE_GB` and `WASTE` leave room when a preset must fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoTokenizer

from rftkit.chat import encode_chat, encode_text
from rftkit.config import PRESETS, RunConfig
from rftkit.decoding import PART_TOKENS
from rftkit.errors import UserError
from rftkit.faults import own_precision
from rftkit.hub import loading, locate
from rftkit.instruct import EXAMPLES, RULES
from rftkit.models import compute_dtype, native
from rftkit.rollout import rows_at_once
from rftkit.shape import Shape, read_shape
from rftkit.tasks import task_of
from rftkit.tasks.base import instructed

GB = 1e9
RESERVE_GB = 0.6  # CUDA context and libraries; assumed
WASTE = 0.1  # share of the memory that an allocator loses to fragments; assumed
UNKNOWN_PROMPT = 128  # tokens, where the model has no tokenizer to count with
UNKNOWN_RULES = 300  # tokens, likewise
FP32 = 4  # bytes: adapter, optimiser, norms and losses, whatever the precision of the base

HELD = ("base", "refiner", "adapter", "optimiser", "dense_copy")  # from the first step to the last

# Constants of NF4 a matrix: its code book, the code book of its scales, their offset (bytes).
NF4_CONSTANTS = 16 * FP32 + 256 * FP32 + FP32


@dataclass(frozen=True)
class Prompts:
    """Tokens of the shortest and of the longest one, and how many are held out."""

    shortest: int
    longest: int
    heldout: int = 0


@dataclass(frozen=True)
class Work:
    """A step's tokens: rows of `prompt` + `response`, in micro-batches of `batch_rows` rows.

    sampled, read: rows sampled and prompts read at once, in a step or in an evaluation, whichever
    are more.
    batch_tokens: tokens that go through the layers for them. batch_copied: those whose keys and
    values are copied besides, from a prompt to each of its responses.
    scored: positions a row whose logits are computed. part: tokens the refiner reads at once.
    rules: tokens of the refiner's rules and examples, which an instruct model needs.
    """

    rows: int
    sampled: int
    read: int
    prompt: int
    response: int
    batch_rows: int
    batch_tokens: int
    batch_copied: int
    scored: int
    part: int
    rules: int

    @property
    def length(self) -> int:
        return self.prompt + self.response


# Settings that say what is trained, not how.
_OWN = (
    "model", "task", "data", "reward", "constraint", "precision", "max_new_tokens", "lora_rank",
    "refiner", "refiner_model", "refiner_noise",
)  # fmt: skip


def estimate(
    config: RunConfig, vram_gb: float = 8.0, prompt_tokens: int = 0, device: str = "",
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Peak memory in GB of a run with `config`, and the largest preset that fits in `vram_gb`.

    prompt_tokens: the longest prompt; 0 = that of the task under the model's tokenizer.
    device: "cpu" or "cuda", whose precisions differ; "" = the configuration's, where auto is cuda.
    given: settings that no preset may change; None = what makes up the task and the model.
    Gives parts_gb (each part at its own largest), phases_gb (what is alive together: while
    sampling, refining, updating), peak_gb (the largest phase), presets and largest_preset.
    Raises UserError where the model's configuration cannot be read.
    """
    if not (math.isfinite(vram_gb) and vram_gb > 0):
        raise UserError(f"vram-gb: {vram_gb!r} must be a number above 0")
    if prompt_tokens < 0:
        raise UserError(f"prompt-tokens: {prompt_tokens} must be at least 0")
    device = device or ("cpu" if config.device == "cpu" else "cuda")
    shape = read_shape(config.model)
    tokenizer = _tokenizer(config.model)
    prompts, rules = _prompts(config, tokenizer, prompt_tokens), _rules(tokenizer)
    refiner = read_shape(config.refiner_model) if config.refiner_model else shape
    usable = (vram_gb - RESERVE_GB) * (1 - WASTE)
    given = {name: getattr(config, name) for name in _OWN} if given is None else given
    presets = {}
    for name, settings in PRESETS.items():
        preset = RunConfig.from_dict({**settings, **given})
        presets[name] = _fit(preset, shape, prompts, device, rules, refiner, usable)
    fitting = [name for name, found in presets.items() if found["fits"]]
    return {
        "model": config.model,
        "precision": config.precision,
        "device": device,
        "parameters": shape.weights + shape.other,
        "prompt_tokens": prompts.longest,
        "max_new_tokens": _response(config),
        **predict(config, shape, prompts, device, rules, refiner),
        "vram_gb": vram_gb,
        "usable_gb": max(0.0, usable),
        "presets": presets,
        "largest_preset": fitting[-1] if fitting else None,
    }


def table(result: dict[str, Any]) -> str:
    """What `estimate` returned, as text."""
    millions = result["parameters"] / 1e6
    prompt, response = result["prompt_tokens"], result["max_new_tokens"]
    lines = [
        f"{result['model']}: {millions:.1f}M parameters, {result['precision']}, {result['device']}",
        f"prompts of {prompt} and responses of {response} tokens",
        "",
        f"{'part, at its largest':<24}{'GB':>9}",
        *(f"{name.replace('_', ' '):<24}{gb:>9.3f}" for name, gb in result["parts_gb"].items()),
        "",
        f"{'alive together while':<24}{'GB':>9}",
        *(f"{name:<24}{gb:>9.3f}" for name, gb in result["phases_gb"].items()),
        f"{'peak':<24}{result['peak_gb']:>9.3f}",
        "",
        f"of {result['vram_gb']:g} GB, tensors may take {result['usable_gb']:.2f} GB",
    ]
    for name, preset in result["presets"].items():
        fits = f"fits (--sampler {preset['sampler']})" if preset["fits"] else "does not fit"
        lines.append(f"{name:<24}{preset['peak_gb']:>9.3f}  {fits}")
    return "\n".join([*lines, f"largest preset that fits: {result['largest_preset'] or 'none'}"])


def predict(
    config: RunConfig,
    shape: Shape,
    prompts: Prompts,
    device: str,
    rules: int = 0,
    refiner: Shape | None = None,
) -> dict[str, Any]:
    """parts_gb, phases_gb and peak_gb of one run.

    rules: tokens that an instruct model reads before it refines. refiner: the shape of
    `refiner_model`; None = the policy's.
    """
    size = _size(config.precision, device)
    work = _work(config, prompts, device, rules)
    adapter = config.lora_rank * sum(i + o for i, o in shape.matrices)  # A [r, in], B [out, r]
    kept, redone = _activations(shape, size, work, config)
    update_logits = _update_logits(shape, size, work)
    parts = {
        "base": _base(shape, size, config.precision),
        "adapter": adapter * FP32,
        # AdamW's two moments and the gradient; strength needs the constraint's gradient beside it.
        "optimiser": 5 * adapter * FP32,
        "activations": kept + redone,
        "logits": update_logits,
        "dense_copy": shape.weights * size if config.sampler == "dense" else 0,
    }
    if own := own_precision(config):
        parts["refiner"] = _base(refiner or shape, _size(own, device), own)
    held = sum(parts.get(p, 0.0) for p in HELD)
    parts["kv_cache"] = sampled = _cache(shape, size, work.sampled * work.length)
    reading = _cache(shape, size, work.read * work.prompt) + _reading(shape, size, work, config)
    phases = {"sampling": held + max(reading, sampled + _sampling_logits(shape, work))}
    if config.constraint not in ("none", "kl", "identity") and not config.refiner:
        parts["kv_cache"] = max(sampled, _refiner_cache(shape, size, work))
        refiner_logits = _refiner_logits(shape, size, work)
        parts["logits"] = max(update_logits, refiner_logits)
        phases["refining"] = held + _refiner_cache(shape, size, work) + refiner_logits
    # The backward pass begins at the logits; later it is inside a layer, the logits gone.
    inside = redone + _backward(shape, size, work)
    phases["update"] = held + kept + max(update_logits, inside)
    return {
        "parts_gb": {name: value / GB for name, value in parts.items()},
        "phases_gb": {name: value / GB for name, value in phases.items()},
        "peak_gb": max(phases.values()) / GB,
    }


# Each part, in bytes


def _size(precision: str, device: str) -> int:
    """Of a number that is computed with."""
    return compute_dtype(precision, torch.device(device)).itemsize


def _base(shape: Shape, size: int, precision: str) -> float:
    """NF4: half a byte a weight; a scale of 1 byte a block of 64, which has a 4-byte scale of its
    own a block of 256. Embeddings, norms and biases stay at `size` bytes a number.
    """
    if precision != "nf4":
        return (shape.weights + shape.other) * size
    blocks = shape.weights / 64
    scales = blocks + FP32 * blocks / 256 + len(shape.matrices) * NF4_CONSTANTS
    return shape.weights / 2 + scales + shape.other * size


def _cache(shape: Shape, size: int, tokens: int) -> float:
    """Keys and values, 2 · layers · kv width a token, and a layer's keys again while they grow."""
    return tokens * 2 * shape.layers * shape.kv_heads * size * (1 + 0.5 / shape.layers)


def _refiner_cache(shape: Shape, size: int, work: Work) -> float:
    """The refiner reads prompt and response and writes a response; dropping rows copies it all."""
    length = work.rules + work.length + work.response
    return 2 * _cache(shape, size, work.rows * length)


def _reading(shape: Shape, size: int, work: Work, config: RunConfig) -> float:
    """One layer of all prompts, nothing kept: residual, norm and result, and the MLP's three inner
    activations; its adapter's result besides, where that is not merged.
    """
    inner = 3 + (config.sampler == "direct")
    return work.read * work.prompt * (4 * shape.hidden + inner * shape.inner) * size


def _sampling_logits(shape: Shape, work: Work) -> float:
    """Logits, log-probs and probs of every row's next token, fp32."""
    return 3 * work.sampled * shape.vocab * FP32


def _refiner_logits(shape: Shape, size: int, work: Work) -> float:
    """Logits of one part's drafts and of the token behind each."""
    length = work.rules + work.length + work.response
    rows = min(work.rows, max(1, work.part // length))
    return rows * (work.response + 1) * shape.vocab * size


def _activations(shape: Shape, size: int, work: Work, config: RunConfig) -> tuple[float, float]:
    """What the forward pass of a micro-batch keeps for the backward pass, and what that one redoes.

    With checkpointing every layer keeps its input alone, and one at a time is redone.
    """
    tokens = work.batch_tokens
    layer = tokens * _layer_activations(shape, size, config.lora_rank)
    layer += work.batch_copied * 2 * shape.heads * size  # as wide as queries: repeated for them
    final = tokens * shape.hidden * FP32  # what enters the last norm
    if config.checkpointing:
        return shape.layers * tokens * shape.hidden * size + final, layer
    return shape.layers * layer + final, 0.0


def _layer_activations(shape: Shape, size: int, rank: int) -> float:
    """Bytes a token that one layer keeps; frozen weights keep no input, adapters keep theirs.

    In fp32 the adapters of q, k, v share one input, those of gate and up another; in bf16 each
    casts its own to fp32.
    """
    matrices = len(shape.matrices) / shape.layers  # adapters a layer
    if size == FP32:
        inputs = float(2 * shape.hidden + shape.inner)
    else:
        inputs = sum(i for i, _ in shape.matrices) / shape.layers
    norms = 2 * shape.hidden + 2  # what enters each norm, in fp32, and its scale
    attention = 2 * shape.heads + 2 * shape.kv_heads  # q, k, v and the result
    mlp = 3 * shape.inner  # gate, its activation, up
    fp32 = inputs + norms + matrices * rank + shape.heads_count  # a logsumexp a head
    return fp32 * FP32 + (attention + mlp) * size


def _update_logits(shape: Shape, size: int, work: Work) -> float:
    """Logits of a micro-batch when the backward pass begins: kept, with their gradients.

    fp32: the scaled logits, and three tensors as large on the way back. bf16: the scaled logits,
    and their gradients row by row, which are then stacked; a row's are worked out in fp32, four
    tensors (see `objectives.token_log_probs`).
    """
    row = work.scored * shape.vocab
    logits = work.batch_rows * row
    if size == FP32:
        return 4 * logits * FP32
    return 2 * logits * size + max(logits * size, 4 * row * FP32)


def _backward(shape: Shape, size: int, work: Work) -> float:
    """The largest gradients of one layer: of the MLP's inner activations, and a dense weight."""
    return work.batch_tokens * 3 * shape.inner * size + shape.largest * size


# From the settings to the numbers above


def _work(config: RunConfig, prompts: Prompts, device: str, rules: int) -> Work:
    longest, response = prompts.longest, _response(config)
    rows = config.prompts * config.group
    evaluated = min(prompts.heldout, rows_at_once(rows, longest + response))
    # A changed response brings its refined version with it.
    sequences = rows if config.constraint in ("none", "kl", "identity") else 2 * rows
    shared = not config.checkpointing  # see `scoring.shares_contexts`
    batch_rows, contexts = 1, 1
    for n in range(2, sequences + 1):
        read = math.ceil(n * config.prompts / sequences) if shared else n
        if read * longest + n * response > config.token_budget:
            break
        batch_rows, contexts = n, read
    return Work(
        rows=rows,
        sampled=max(rows, evaluated),
        read=max(config.prompts, evaluated),
        prompt=longest,
        response=response,
        batch_rows=batch_rows,
        batch_tokens=contexts * longest + batch_rows * response,
        batch_copied=batch_rows * longest if shared else 0,
        scored=response if shared else longest - prompts.shortest + response + 1,
        part=PART_TOKENS.get(device, PART_TOKENS["cpu"]),
        rules=rules,
    )


def _response(config: RunConfig) -> int:
    return config.max_new_tokens or task_of(config).max_new_tokens


def _rules(tokenizer: Any) -> int:
    if tokenizer is None:
        return UNKNOWN_RULES
    texts = [RULES, *(text for example in EXAMPLES for text in example)]
    return 0 if native(tokenizer) else sum(len(encode_text(tokenizer, text)) for text in texts)


def _prompts(config: RunConfig, tokenizer: Any, prompt_tokens: int) -> Prompts:
    task = task_of(config)
    heldout = len(task.prompts("heldout"))
    if prompt_tokens:
        return Prompts(prompt_tokens, prompt_tokens, heldout)
    if tokenizer is None or not tokenizer.chat_template:
        return Prompts(UNKNOWN_PROMPT, UNKNOWN_PROMPT, heldout)
    told = "" if native(tokenizer) else task.instruction
    found = instructed(task.prompts("train"), told)
    lengths = [len(encode_chat(tokenizer, p.messages)) for p in found]
    return Prompts(min(lengths), max(lengths), heldout)


def _tokenizer(model: str) -> Any:
    """None where there is none: a config.json alone will do."""
    with loading(model):
        try:
            return AutoTokenizer.from_pretrained(locate(model))
        except (OSError, ValueError):
            return None


def _fit(
    config: RunConfig,
    shape: Shape,
    prompts: Prompts,
    device: str,
    rules: int,
    refiner: Shape,
    usable: float,
) -> dict[str, Any]:
    """Whether a preset fits: with a dense copy to sample from if possible, else without."""
    found: dict[str, Any] = {}
    for sampler in ("dense", "direct"):
        tried = replace(config, sampler=sampler)
        peak = predict(tried, shape, prompts, device, rules, refiner)["peak_gb"]
        found = {"peak_gb": peak, "sampler": sampler, "fits": peak <= usable}
        if found["fits"]:
            break
    return found
