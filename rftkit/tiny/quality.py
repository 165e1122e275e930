"""How well the embedded model answers and refines, on held-out prompts: the figures of its card."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from rftkit.metrics import edit_ratio
from rftkit.models import Policy
from rftkit.refiner import OnlineRefiner
from rftkit.rollout import Sampler
from rftkit.tasks import Prompt, Task
from rftkit.tiny.corpus import DRAFT_KINDS, draft_pair

DRAFTS = 4  # of each kind, for each prompt
SPARE = 16  # tokens that a refined draft may be longer than a response
NEIGHBOURED = 64  # prompts whose good responses are taken one step too far, in every way
ENOUGH = 20  # drafts of one such way, to rank it


def measure(policy: Policy, task: Task, prompts: int = 256, seed: int = 1) -> dict[str, float]:
    """Figures for one task, each a share of drafts or responses unless named otherwise.

    base_*: the policy's answers at temperature 1. kept_*: well-formed drafts returned verbatim.
    fixed_*: malformed drafts made well-formed. broken: well-formed drafts made malformed.
    *neighbours: drafts one step from good form (`Task.neighbours`), all and the worst kind of step.
    """
    rows = task.prompts("heldout")[:prompts]
    refiner = OnlineRefiner(policy, task.max_new_tokens + SPARE)
    return _base(policy, task, rows, seed) | refining(refiner, task, rows, seed)


def refining(
    refiner: OnlineRefiner, task: Task, rows: Sequence[Prompt], seed: int = 1
) -> dict[str, float]:
    """The figures of `measure` that concern any refiner, on drafts for these prompts."""
    rng = random.Random(seed)
    found, well_formed, encode = {}, list[bool](), refiner.policy.encode
    rows = [*rows] * DRAFTS
    for kind in DRAFT_KINDS:
        pairs = [_pair(task, kind, p, rng) for p in rows]
        sound = [task.well_formed(p, d) for p, (d, _) in zip(rows, pairs, strict=True)]
        out = refiner.refine(rows, [d for d, _ in pairs])
        good = [
            not r.fallback and task.well_formed(p, r.refined)
            for p, r in zip(rows, out, strict=True)
        ]
        well_formed += [g for g, s in zip(good, sound, strict=True) if s]
        if kind in ("clean", "unusual"):
            found[f"kept_{kind}"] = fmean(not r.changed for r in out)
        else:
            found[f"fixed_{kind}"] = fmean(g for g, s in zip(good, sound, strict=True) if not s)
            found[f"edit_ratio_{kind}"] = fmean(r.edit_ratio for r in out)
            found[f"least_edit_ratio_{kind}"] = fmean(
                edit_ratio(encode(d), encode(t)) for d, t in pairs
            )
    found["broken"] = 1 - fmean(well_formed)
    return found | _neighbours(refiner, task, rows[:NEIGHBOURED], rng)


def _neighbours(
    refiner: OnlineRefiner, task: Task, rows: Sequence[Prompt], rng: random.Random
) -> dict[str, float]:
    """Share of malformed drafts one step from good form that are fixed: of all, and by kind."""
    drafts = [(kind, p, draft) for p in rows for kind, draft in task.neighbours(p, rng)]
    fixed = defaultdict(list)
    for start in range(0, len(drafts), 512):
        part = drafts[start : start + 512]
        out = refiner.refine([p for _, p, _ in part], [draft for *_, draft in part])
        for (kind, p, _), r in zip(part, out, strict=True):
            fixed[kind].append(not r.fallback and task.well_formed(p, r.refined))
    mean = fmean(chain.from_iterable(fixed.values()))
    common = [fmean(shares) for shares in fixed.values() if len(shares) >= ENOUGH]
    return {"fixed_neighbours": mean, "fixed_worst_neighbours": min(common, default=mean)}


def _pair(task: Task, kind: str, prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    if kind == "clean":  # the corpus mixes unusual ones in; here each kind has its own figure
        draft = task.clean(prompt, rng)
        return draft, draft
    return draft_pair(task, kind, prompt, rng)


def _base(policy: Policy, task: Task, rows: Sequence[Prompt], seed: int) -> dict[str, float]:
    with policy.reference():
        rollouts = Sampler(policy, "direct").sample(
            rows, group=1, max_new_tokens=task.max_new_tokens, seed=seed
        )
    scores = task.score(rows, rollouts.responses, rollouts.finished)
    return {
        "base_gold_share": fmean(s.gold_reward for s in scores) / task.gold_max,
        "base_degenerate": fmean(s.degenerate for s in scores),
    }


def card(figures: dict[str, dict[str, float]], facts: dict[str, Any]) -> str:
    """The model card, in Markdown, from measured figures and from the recipe's settings."""
    lines = [
        "# The embedded model",
        "",
        "A small Llama trained from scratch on generated text: it answers prompts imperfectly, on",
        "purpose, and refines drafts well. It knows nothing else, and is for teaching alone.",
        "Made by `rftkit pretrain`, settings in `pretrain.json`; any Hugging Face tool loads it.",
        "The shipped weights were trained in four sittings, the earlier ones on other drafts: the",
        "recipe makes such a model, not the same one.",
        "",
        "| fact | value |",
        "|---|---|",
        *[f"| {name} | {value} |" for name, value in facts.items()],
        "",
        "Measured in NF4 on held-out prompts; shares. Refined greedily, answered at temperature 1.",
        "",
        "| figure | " + " | ".join(figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    for name in next(iter(figures.values())):
        values = " | ".join(f"{task[name]:.3f}" for task in figures.values())
        lines.append(f"| {name} | {values} |")
    lines += [
        "",
        "base: answers of the reference, gold share as part of the gold maximum. kept: well-formed",
        "drafts returned token by token. fixed: malformed drafts made well-formed, after 1 to 4",
        "edits, a flood of the task's own kind, or an overstep: just past the limit of good form,",
        "where training begins to degenerate, with what is too much in one place or scattered.",
        "neighbours: drafts one step from a good one, by every step in every place; of these all,",
        "and the worst kind of step. Training finds it, so it says more than the mean.",
        "broken: well-formed drafts made malformed.",
        "edit_ratio: what the refiner changed; least_edit_ratio: what undoing the damage takes.",
    ]
    return "\n".join(lines) + "\n"
