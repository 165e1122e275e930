"""What a step costs on large models: tokens, FLOPs, bytes. Counted, not measured.

`python -m rftkit.cost` prints the table of docs/scaling.md. A forward pass takes 2 FLOPs a
parameter and token; attention's share, small at these lengths, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig, Qwen2Config

from rftkit.config import RunConfig
from rftkit.estimate import Prompts, predict
from rftkit.shape import Shape, shape_of

PEAK = 990e12  # FLOP/s of an H100 in bf16, by its data sheet
USED = 0.4  # share of it that large-model training commonly reaches; assumed
FP32, BF16 = 4, 2  # bytes
LINK = 50e9  # bytes/s between two nodes, 400 Gbit/s; assumed

MODELS = {
    "7B": Qwen2Config(  # sizes of Qwen2.5-7B
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    ),
    "70B": LlamaConfig(  # sizes of Llama-3-70B
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
    ),
}


@dataclass(frozen=True)
class Step:
    """One update: `rollouts` responses in groups, each of `prompt` + `response` tokens.

    edits: places in a response where the refiner corrects; they decide its number of passes. Its
    rules and examples are read once a process, which is left out.
    """

    rollouts: int = 512
    group: int = 8
    prompt: int = 256
    response: int = 512
    edits: int = 2
    rank: int = 16


def adapter_parameters(shape: Shape, rank: int) -> int:
    """LoRA on every linear layer: A [rank, in] and B [out, rank]."""
    return rank * sum(i + o for i, o in shape.matrices)


def flops(shape: Shape, step: Step) -> dict[str, float]:
    """FLOPs of each part of a step, all processes together.

    update and sft: forward 2, backward 2 (frozen weights need no gradient), recompute 2 (activation
    checkpointing). refine: a prefill of prompt, draft, and the draft again as its own speculation;
    what is verified again after an edit is at most a few windows.
    """
    parameters = shape.weights + shape.other
    prompts = step.rollouts / step.group * step.prompt
    tokens = step.rollouts * (step.prompt + step.response)
    draft = step.rollouts * step.response
    return {
        "sample": 2 * parameters * (prompts + draft),
        "update": 6 * parameters * tokens,
        "refine": 2 * parameters * (tokens + draft),
        "sft": 6 * parameters * tokens,
    }


def passes(step: Step) -> dict[str, int]:
    """Forward passes one after the other; where batches are small, they decide the time."""
    return {"sample": step.response, "refine": step.edits + 1, "plain refine": step.response}


def bytes_moved(shape: Shape, step: Step, processes: int) -> dict[str, float]:
    """Bytes each process sends in a step, by the usual ring algorithms.

    data parallel: gradients of the adapter alone. sharded (FSDP, ZeRO-3): besides, the base is
    gathered for each of six passes: sampling or refining once each, policy and SFT forward and
    backward.
    """
    share = (processes - 1) / processes
    gradients = 2 * share * FP32 * adapter_parameters(shape, step.rank)
    weights = 6 * share * BF16 * (shape.weights + shape.other)
    return {"data parallel": gradients, "sharded": gradients + weights}


def memory_gb(shape: Shape, step: Step, processes: int, sharded: bool) -> float:
    """GB a process holds between steps: base in bf16, adapter with gradient and AdamW in fp32."""
    base = BF16 * (shape.weights + shape.other)
    adapter = 4 * FP32 * adapter_parameters(shape, step.rank)
    return (base + adapter) / (processes if sharded else 1) / 1e9


def table(step: Step | None = None) -> str:
    """Markdown: the cost of a step for each model and number of GPUs."""
    step = step or Step()
    shapes = {name: shape_of(settings) for name, settings in MODELS.items()}
    lines = ["| | " + " | ".join(shapes) + " |", "|---|" + "---|" * len(shapes)]

    def row(what: str, values: list[str]) -> None:
        lines.append(f"| {what} | " + " | ".join(values) + " |")

    row("parameters", [f"{(s.weights + s.other) / 1e9:.1f} G" for s in shapes.values()])
    row(
        f"adapter, rank {step.rank}",
        [f"{adapter_parameters(s, step.rank) / 1e6:.0f} M" for s in shapes.values()],
    )
    costs = [flops(s, step) for s in shapes.values()]
    for part in costs[0]:
        row(f"{part}, PFLOP", [f"{cost[part] / 1e15:.0f}" for cost in costs])
    for part, count in passes(step).items():
        row(f"{part}: passes in a row", [str(count)] * len(shapes))
    extra = [(c["refine"] + c["sft"]) / (c["sample"] + c["update"]) for c in costs]
    row("dynamic constraint / rest", [f"{e:.2f}" for e in extra])
    for gpus in (1, 8, 16):
        seconds = [sum(c.values()) / (gpus * PEAK * USED) for c in costs]
        row(f"compute on {gpus} GPU{'s' * (gpus > 1)}, s", [f"{s:.0f}" for s in seconds])
    for gpus in (8, 16):
        moved = [bytes_moved(s, step, gpus) for s in shapes.values()]
        row(
            f"sent by each of {gpus}: data parallel, GB",
            [f"{m['data parallel'] / 1e9:.2f}" for m in moved],
        )
        row(f"sent by each of {gpus}: sharded, GB", [f"{m['sharded'] / 1e9:.0f}" for m in moved])
    apart = [bytes_moved(s, step, 16)["sharded"] / LINK for s in shapes.values()]
    row("sharded over 16, on the link between two nodes, s", [f"{s:.0f}" for s in apart])
    row("held, not sharded, GB", [f"{memory_gb(s, step, 1, False):.0f}" for s in shapes.values()])
    for gpus in (8, 16):
        held = [f"{memory_gb(s, step, gpus, True):.0f}" for s in shapes.values()]
        row(f"held, sharded over {gpus}, GB", held)
    peaks = [_nf4_peak(s, step) for s in shapes.values()]
    row("peak of `rftkit train` in NF4, 8 rollouts, GB", [f"{p:.0f}" for p in peaks])
    return "\n".join(lines) + "\n"


def _nf4_peak(shape: Shape, step: Step) -> float:
    """GB of our own trainer on one GPU, as `rftkit estimate` predicts it."""
    config = RunConfig(
        model="large", prompts=1, group=8, max_new_tokens=step.response, checkpointing=True,
        sampler="direct", lora_rank=step.rank, token_budget=step.prompt + step.response,
    )  # fmt: skip
    prompts = Prompts(step.prompt, step.prompt)
    peak: float = predict(config, shape, prompts, "cuda", rules=300)["peak_gb"]
    return peak


if __name__ == "__main__":
    print(table(), end="")
