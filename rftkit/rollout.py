"""Sampling: prompts in, a batch of rollouts out, with the log-probs they were sampled at.

The loop keeps a KV cache, reads each prompt once for its whole group, and drops finished rows.
With `sampler: dense`, the default, it samples from a dense copy of the weights (the 4-bit base
dequantised, the adapter merged); with `direct` from the 4-bit model itself, in less memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoModelForCausalLM, DynamicCache

from rftkit.errors import BadStepError, UserError
from rftkit.models import Policy
from rftkit.tasks import Prompt, Score

EVAL_TOKENS = 32768  # sampled together in an evaluation; held-out prompts may be many


@dataclass
class Rollouts:
    """A batch of responses, `group` in a row for each prompt.

    response_ids end in EOS where `finished`. log_probs and entropy hold one value a response token,
    in nats, under the policy as it sampled.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    responses: list[str]
    finished: list[bool]
    log_probs: list[torch.Tensor]
    entropy: list[torch.Tensor]
    group: int

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def tokens(self) -> int:
        """Response tokens in the batch."""
        return sum(map(len, self.response_ids))

    @classmethod
    def joined(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Batches of the same group one behind the other."""
        rows = [f.name for f in fields(cls) if f.name != "group"]
        lists = {name: [row for part in parts for row in getattr(part, name)] for name in rows}
        return cls(**lists, group=parts[0].group)

    def records(
        self, step: int, refined: Sequence[str], scores: Sequence[Score]
    ) -> list[dict[str, Any]]:
        """Rows of samples.jsonl: the first responses, as many as are `refined`."""
        return [
            {
                "step": step,
                "prompt": self.prompts[i].text,
                "response": self.responses[i],
                "refined": text,
                "task_reward": scores[i].task_reward,
                "gold_reward": scores[i].gold_reward,
            }
            for i, text in enumerate(refined)
        ]

    def replace_group(self, group: int, source: Rollouts, place: int) -> None:
        """Overwrite group number `group` with group number `place` of another batch."""
        into = slice(group * self.group, (group + 1) * self.group)
        taken = slice(place * self.group, (place + 1) * self.group)
        for rows in fields(self):
            if rows.name != "group":
                getattr(self, rows.name)[into] = getattr(source, rows.name)[taken]


def rows_at_once(step_rows: int, longest: int) -> int:
    """How many responses an evaluation samples together: as many as a step does, or EVAL_TOKENS.

    longest: tokens of a prompt and its response.
    """
    return max(step_rows, EVAL_TOKENS // longest)


@dataclass
class Generated:
    """Token ids of each row, with log-prob and entropy (nats) of each token."""

    ids: list[list[int]]
    log_probs: list[torch.Tensor]
    entropy: list[torch.Tensor]


def max_positions(net: Any) -> float:
    """How many tokens the model reads at most; infinity where its config sets no limit."""
    return getattr(net.config, "max_position_embeddings", None) or math.inf


def check_fits(net: Any, contexts: Sequence[Sequence[int]], room: int, what: str = "text") -> None:
    """Raise UserError where a context leaves no room for `room` tokens in the model's window.

    what: they are called in the message, which gives the number of the first.
    """
    window = max_positions(net)
    for number, context in enumerate(contexts, 1):
        if len(context) + room > window:
            raise UserError(
                f"{what} {number} of {len(contexts)} has {len(context)} tokens and needs room for "
                f"{room} more, but the model reads {window}: shorten it, or allow shorter "
                "responses (max_new_tokens)"
            )


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Any, Any]:
    """Right-aligned ids and attention mask, both [rows, longest]."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


@torch.no_grad()
def generate(
    net: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    group: int = 1,
    max_new_tokens: int | Sequence[int],
    eos_ids: frozenset[int],
    pad_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Generated:
    """Continue each prompt `group` times until EOS or `max_new_tokens` (one number, or one a row).

    temperature 0 decodes greedily. Returns rows in order, the group of a prompt together. Raises
    UserError where a prompt is too long, BadStepError where the model's output is not a number.
    """
    device = next(net.parameters()).device
    rows = len(prompt_ids) * group
    limits = [max_new_tokens] * rows if isinstance(max_new_tokens, int) else list(max_new_tokens)
    check_fits(net, prompt_ids, max(limits))
    limit = torch.tensor(limits, device=device)
    ids, mask = left_pad(prompt_ids, pad_id, device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=net.config)
    out = net(
        ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
    )
    if group > 1:
        cache.batch_repeat_interleave(group)
    logits = out.logits[:, -1].repeat_interleave(group, 0).float()  # [alive, vocab]
    mask = mask.repeat_interleave(group, 0)
    position = positions[:, -1:].repeat_interleave(group, 0)  # of the last token fed
    stop = torch.tensor(sorted(eos_ids), device=device)
    alive = torch.arange(rows, device=device)  # which row each line of the batch is
    longest = max(limits)
    tokens = torch.full((rows, longest), pad_id, device=device)
    log_probs = torch.zeros(rows, longest, device=device)
    entropy = torch.zeros(rows, longest, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    for t in range(longest):
        if logits.isnan().any():  # else sampling would crash, on a GPU beyond recovery
            raise BadStepError("logits not finite", "the model broke down; take precision fp32")
        if temperature > 0:
            log_p = torch.log_softmax(logits / temperature, -1)
            p = log_p.exp()
            chosen = torch.multinomial(p, 1, generator=generator)  # [alive, 1]
        else:
            log_p = torch.log_softmax(logits, -1)
            p = log_p.exp()
            chosen = logits.argmax(-1, keepdim=True)
        tokens[alive, t] = chosen[:, 0]
        log_probs[alive, t] = log_p.gather(1, chosen)[:, 0]
        entropy[alive, t] = -(p * log_p.clamp(min=-1e4)).sum(-1)
        lengths[alive] = t + 1
        going = ~torch.isin(chosen[:, 0], stop) & (limit[alive] > t + 1)
        if not going.any():
            break
        if not going.all():
            keep = going.nonzero()[:, 0]
            alive, mask, position, chosen = alive[keep], mask[keep], position[keep], chosen[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = position + 1
        out = net(chosen, attention_mask=mask, position_ids=position, past_key_values=cache)
        logits = out.logits[:, -1].float()
    cut = lengths.tolist()
    return Generated(
        [row[:n] for row, n in zip(tokens.tolist(), cut, strict=True)],
        [row[:n] for row, n in zip(log_probs.cpu(), cut, strict=True)],
        [row[:n] for row, n in zip(entropy.cpu(), cut, strict=True)],
    )


class DenseCopy:
    """The policy's weights as one plain model: base dequantised, adapter merged.

    Embeddings and norms are shared with the policy, not copied. `refresh` after each update.
    """

    def __init__(self, policy: Policy):
        self._base: Any = policy.model.get_base_model()
        settings = self._base.config.to_dict()
        settings.pop("quantization_config", None)
        config = type(self._base.config).from_dict(settings)
        with init_empty_weights(include_buffers=False):
            self.net: Any = AutoModelForCausalLM.from_config(config, dtype=self._base.dtype)
        self.net.eval()
        self._dense = dict(self.net.named_modules())
        self._adapted = [m for m in self._base.named_modules() if isinstance(m[1], LoraLayer)]
        for name, module in self._base.named_modules():
            if name in self._dense and not isinstance(module, LoraLayer):
                for key, value in module.named_parameters(recurse=False):
                    self._set(name, key, value.data)
                for key, buffer in module.named_buffers(recurse=False):
                    self._dense[name].register_buffer(key, buffer, persistent=False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the adapter's present weights."""
        for name, module in self._adapted:
            layer = module.get_base_layer()
            weight = dequantize_module_weight(layer).to(self._base.dtype)
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter).to(weight.dtype)
            self._set(name, "weight", weight)
            if layer.bias is not None:
                self._set(name, "bias", layer.bias.data)

    def _set(self, module: str, key: str, value: torch.Tensor) -> None:
        parameter = torch.nn.Parameter(value, requires_grad=False)
        self._dense[module].register_parameter(key, parameter)


class Sampler:
    """Draws rollouts from a policy."""

    def __init__(self, policy: Policy, kind: str = "dense"):
        self.policy = policy
        self._copy = DenseCopy(policy) if kind == "dense" else None

    def refresh(self) -> None:
        """Call after the adapter changed."""
        if self._copy is not None:
            self._copy.refresh()

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Rollouts:
        """`group` responses to each prompt; the same seed and weights give the same rollouts."""
        policy = self.policy
        prompt_ids = [policy.encode_chat(p.messages) for p in prompts]
        generator = torch.Generator(policy.device).manual_seed(seed)
        out = generate(
            self._copy.net if self._copy is not None else policy.model,
            prompt_ids,
            group=group,
            max_new_tokens=max_new_tokens,
            eos_ids=policy.eos_ids,
            pad_id=policy.pad_id,
            temperature=temperature,
            generator=generator,
        )
        return Rollouts(
            prompts=[p for p in prompts for _ in range(group)],
            prompt_ids=[ids for ids in prompt_ids for _ in range(group)],
            response_ids=out.ids,
            responses=[policy.decode(ids) for ids in out.ids],
            finished=[ids[-1] in policy.eos_ids for ids in out.ids],
            log_probs=out.log_probs,
            entropy=out.entropy,
            group=group,
        )

    def answer(
        self, prompts: Sequence[Prompt], rows: int, max_new_tokens: int, seed: int
    ) -> Rollouts:
        """One response to each prompt at temperature 1, no more at once than memory has room for.

        rows: responses that a step samples at once.
        """
        longest = max(len(self.policy.encode_chat(p.messages)) for p in prompts)
        at_once = rows_at_once(rows, longest + max_new_tokens)
        parts = [prompts[first : first + at_once] for first in range(0, len(prompts), at_once)]
        return Rollouts.joined(
            [
                self.sample(part, group=1, max_new_tokens=max_new_tokens, seed=seed + i)
                for i, part in enumerate(parts)
            ]
        )
