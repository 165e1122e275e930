"""Every setting of a run, in one dataclass: the command line and config.json are made from it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_type_hints

from rftkit.errors import UserError

# The registry of constraints, one line each; a class loads when a run asks for it.
CONSTRAINTS = {
    "none": "rftkit.constraints:NoConstraint",
    "kl": "rftkit.constraints:KLConstraint",
    "dynamic": "rftkit.constraints:DynamicConstraint",
    "identity": "rftkit.constraints:IdentityConstraint",
    "fresh": "rftkit.constraints:FreshConstraint",
    "random-edit": "rftkit.constraints:RandomEditConstraint",
}


@dataclass
class RunConfig:
    """Settings of one training run. The default is the `cpu_tiny` preset."""

    task: Annotated[
        str, "what to train on: dialogue, code, game, or own (with data and reward)"
    ] = "dialogue"
    data: Annotated[str, "JSONL file of your own prompts instead of the task's"] = ""
    reward: Annotated[
        str, "your own reward as module:function, called like TRL's reward functions"
    ] = ""
    gold: Annotated[
        str, "your own gold reward, called likewise: it judges held-out prompts, trains nothing"
    ] = ""
    constraint: Annotated[str, "what holds the policy near good text"] = "dynamic"
    coef: Annotated[float | None, "weight of the constraint: β or λ; unset = the tuned one"] = None
    model: Annotated[str, "'tiny', a folder, or a Hugging Face name of a causal LM"] = "tiny"
    precision: Annotated[Literal["nf4", "bf16", "fp32"], "of the frozen base: nf4 is 4-bit"] = "nf4"
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        "auto takes cuda, then mps, then cpu; for 'tiny' the cpu, where it is faster",
    ] = "auto"
    seed: Annotated[int, "decides prompts, samples and the adapter's first weights"] = 0
    steps: Annotated[int, "updates of the policy"] = 200

    prompts: Annotated[int, "different prompts a step"] = 8
    group: Annotated[int, "responses a prompt; advantages compare within the group"] = 8
    max_new_tokens: Annotated[int, "longest response, in tokens; 0 = the task's own"] = 0
    temperature: Annotated[float, "of sampling, and of the loss, which must be the same"] = 1.0

    lr: Annotated[float, "learning rate of the adapter (AdamW)"] = 1e-3
    warmup: Annotated[int, "steps of linear warm-up"] = 5
    max_grad_norm: Annotated[float, "longer gradients are scaled down to this"] = 1.0
    lora_rank: Annotated[int, "rank of the adapter on every linear layer"] = 8
    updates: Annotated[int, "passes over one batch of rollouts; above 1 the clip matters"] = 1
    token_budget: Annotated[int, "tokens in one micro-batch, padding included"] = 1024
    checkpointing: Annotated[bool, "recompute activations in the backward pass to save memory"] = (
        False
    )
    sampler: Annotated[
        Literal["dense", "direct"],
        "sample from a dense copy of the weights, or from the 4-bit base",
    ] = "dense"

    advantage: Annotated[
        Literal["grpo", "dr_grpo", "rloo"], "how rewards of a group become advantages"
    ] = "grpo"
    aggregate: Annotated[
        Literal["token", "sequence", "constant"],
        "mean of the policy loss: over tokens (DAPO), sequences, constant",
    ] = "token"
    clip_low: Annotated[float, "ratio may fall to 1 - this"] = 0.2
    clip_high: Annotated[float, "ratio may rise to 1 + this (DAPO: clip-higher)"] = 0.28
    importance_cap: Annotated[float, "largest weight for the sampler's mismatch"] = 2.0
    resample: Annotated[int, "rounds of new prompts for groups of equal rewards (DAPO)"] = 0
    overlong: Annotated[
        Literal["keep", "filter", "penalty"],
        "responses that ran out of tokens: keep, mask out, or penalise",
    ] = "keep"

    kl_form: Annotated[
        Literal["k1-reward", "k2-loss", "k3-loss"],
        "estimator, and whether it is a reward or a loss",
    ] = "k3-loss"
    kl_target: Annotated[float, "adaptive β aims at this KL in nats a token; 0 = fixed β"] = 0.0
    reference_reset: Annotated[int, "steps between resets of KL's reference; 0 = never"] = 0
    sft_on: Annotated[
        Literal["all", "changed"], "refined responses to learn from: all, or only the changed"
    ] = "all"

    refine_share: Annotated[
        float, "share of a step's responses that are refined and learned from; drawn at random"
    ] = 1.0
    refiner: Annotated[
        str, "a refiner of your own, MODULE:FUNCTION (rftkit/own_refiner.py); empty = a model"
    ] = ""
    refiner_model: Annotated[str, "another model as refiner; empty = the policy's reference"] = ""
    refiner_noise: Annotated[
        float, "damage: noise on the refiner's weights, in their standard deviations"
    ] = 0.0
    refiner_cuts: Annotated[
        str, "bias: a regular expression that the refiner deletes from every response"
    ] = ""
    edit_limit: Annotated[
        float, "an instruct model's refinement with a larger edit ratio is refused"
    ] = 0.5

    eval_every: Annotated[int, "steps between evaluations on held-out prompts"] = 10
    eval_prompts: Annotated[int, "held-out prompts an evaluation, one response each"] = 128
    strength_every: Annotated[int, "steps between measurements of strength (costs a backward)"] = 5
    save_every: Annotated[int, "steps between checkpoints"] = 20
    patience: Annotated[int, "steps skipped in a row, for numbers gone bad, that stop the run"] = 10
    samples: Annotated[int, "responses kept in samples.jsonl at each evaluation"] = 8
    trackers: Annotated[str, "also log to these, comma-separated: tensorboard, trackio, wandb"] = ""

    def __post_init__(self) -> None:
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        for name, (kind, _) in field_docs().items():
            value = getattr(self, name)
            if kind in (str, bool) and not isinstance(value, kind):
                raise UserError(f"{name}: {value!r} must be {_NAMES[kind]}")
            if kind is int:
                if isinstance(value, bool) or not isinstance(value, Integral):
                    raise UserError(f"{name}: {value!r} must be a whole number")
                setattr(self, name, int(value))
        for name, lowest in _LOWEST.items():
            value, highest = getattr(self, name), _HIGHEST.get(name, math.inf)
            if value is None and name == "coef":
                continue
            number = isinstance(value, Real)
            if not number or not lowest <= value < math.inf:
                raise UserError(f"{name}: {value!r} must be a number of at least {lowest}")
            if value > highest:
                raise UserError(f"{name}: {value!r} must be at most {highest}")
            if type(value) not in (int, float):
                setattr(self, name, float(value))  # numpy's are no JSON

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Inverse of `to_dict`. Raises UserError for a field that does not exist."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise UserError(f"config: unknown field {', '.join(sorted(unknown))}; remove it")
        return cls(**values)


_NAMES = {str: "text", bool: "True or False"}

_LOWEST = {
    "coef": 0,
    "seed": 0,
    "steps": 1,
    "prompts": 1,
    "group": 2,
    "max_new_tokens": 0,
    "temperature": 1e-3,
    "lr": 0,
    "warmup": 0,
    "max_grad_norm": 1e-6,
    "lora_rank": 1,
    "updates": 1,
    "token_budget": 1,
    "clip_low": 0,
    "clip_high": 0,
    "importance_cap": 1,
    "resample": 0,
    "kl_target": 0,
    "reference_reset": 0,
    "refine_share": 1e-6,
    "refiner_noise": 0,
    "edit_limit": 0,
    "eval_every": 1,
    "eval_prompts": 1,
    "strength_every": 1,
    "save_every": 1,
    "patience": 1,
    "samples": 0,
}

# Beyond these a number is a slip of the keyboard, or no number of a seed.
_HIGHEST = {
    "seed": 2**32 - 1,
    "prompts": 2**16,
    "group": 2**16,
    "lora_rank": 2**12,
    "updates": 1000,
    "lr": 1000.0,
    "temperature": 1000.0,
    "refine_share": 1.0,
}

# What differs from the default on larger machines.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu_tiny": {},
    "gpu_8gb": {"prompts": 8, "group": 8, "lr": 2e-5, "token_budget": 4096, "checkpointing": True},
    "gpu_24gb": {
        "prompts": 16,
        "group": 8,
        "lr": 2e-5,
        "token_budget": 8192,
        "checkpointing": True,
    },
}


@cache
def field_docs() -> dict[str, tuple[Any, str]]:
    """Type and sentence of every field, in order."""
    hints = get_type_hints(RunConfig, include_extras=True)
    return {
        f.name: (hints[f.name].__origin__, hints[f.name].__metadata__[0]) for f in fields(RunConfig)
    }


# The fields with a closed set of values.
CHOICES: dict[str, Collection[str]] = {"constraint": CONSTRAINTS} | {
    name: get_args(kind) for name, (kind, _) in field_docs().items() if "Literal" in str(kind)
}


def check_choice(name: str, value: object) -> None:
    """Raise UserError where a setting of few values has another one."""
    if value not in tuple(CHOICES[name]):
        raise UserError(f"{name}: {value!r} is unknown; choose of {', '.join(CHOICES[name])}")
