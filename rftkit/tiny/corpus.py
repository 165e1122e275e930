"""What the embedded model learns from: prompts to answer, and drafts to refine.

Endless and without files: batch n of a seed is always the same, so pre-training resumes by its step
number. The refiner learns one rule: a well-formed draft stays as it is, right or wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from rftkit.tasks import Prompt, Task
from rftkit.tasks.base import edit_units
from rftkit.words import units


@dataclass(frozen=True)
class Stage:
    """What is shown, in shares.

    kinds: of drafts. answers: of all examples, by task, where it is not ANSWERS. foreign: of the
    drafts of WHOLE_KINDS, those written for another prompt: they teach to copy, not to solve.
    tasks: names in turn, where they are not those of the recipe.
    """

    kinds: dict[str, float]
    answers: dict[str, float] = field(default_factory=dict)
    foreign: float = 0.0
    tasks: tuple[str, ...] = ()


ANSWERS = 0.3
_EARLY = {"clean": 0.20, "unusual": 0.20, "edits": 0.24, "flood": 0.18, "overstep": 0.18}
# What is shown from a step of pre-training on. Of the examples, `answers` (by task) are responses,
# the rest refine a draft of some kind: "edits" are 1-4 random edits, "flood" is the task's own
# degeneracy, "overstep" its beginning: at the limit of good form, or one step over it. "scattered"
# has what is too much anywhere, which is harder to see, so it comes late. Walks are refined well
# early on, and crossing a map is what takes practice: so the game turns to answers. Copying
# programs takes longest: their numbers come from the prompt unless other drafts forbid it. Last
# come dialogue and code again: there a policy finds what the refiner overlooks.
STAGES: dict[int, Stage] = {
    0: Stage(_EARLY),
    2600: Stage(
        {"clean": 0.22, "unusual": 0.22, "edits": 0.22, "flood": 0.16, "overstep": 0.18},
        answers={"game": 0.6},
        foreign=0.5,
    ),
    4000: Stage(
        {
            "clean": 0.18,
            "unusual": 0.20,
            "edits": 0.18,
            "flood": 0.12,
            "overstep": 0.10,
            "scattered": 0.22,
        },
        answers={"game": 0.6},
        foreign=0.25,
    ),
    6800: Stage(
        {
            "clean": 0.22,
            "unusual": 0.26,
            "edits": 0.14,
            "flood": 0.10,
            "overstep": 0.10,
            "scattered": 0.18,
        },
        answers={"game": 0.5},
        foreign=0.5,
        tasks=("dialogue", "code", "game", "code", "dialogue", "code", "game", "code"),
    ),
    11_000: Stage(
        {
            "clean": 0.20,
            "unusual": 0.24,
            "edits": 0.12,
            "flood": 0.08,
            "overstep": 0.10,
            "scattered": 0.26,
        },
        answers={"game": 0.5},
        foreign=0.5,
        tasks=("dialogue", "code", "dialogue", "game", "dialogue", "code", "dialogue", "code"),
    ),
    12_400: Stage(
        {
            "clean": 0.18,
            "unusual": 0.22,
            "edits": 0.10,
            "flood": 0.06,
            "overstep": 0.10,
            "scattered": 0.34,
        },
        answers={"game": 0.5},
        foreign=0.5,
        tasks=("dialogue", "code", "dialogue", "game", "dialogue", "code", "dialogue", "code"),
    ),
    13_400: Stage(
        {
            "clean": 0.18,
            "unusual": 0.20,
            "edits": 0.10,
            "flood": 0.06,
            "overstep": 0.08,
            "scattered": 0.38,
        },
        answers={"game": 0.5},
        foreign=0.5,
        tasks=("dialogue", "code", "code", "dialogue", "code", "game", "dialogue", "code"),
    ),
}
DRAFT_KINDS = (*_EARLY, "scattered")
# Drafts which tell what was meant.
WHOLE_KINDS = ("clean", "unusual", "overstep", "scattered")


@dataclass(frozen=True)
class Example:
    """One training text: a response to a prompt, or the refined version of a draft."""

    prompt: Prompt
    draft: str | None
    target: str


def draft_pair(task: Task, kind: str, prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """A (draft, refined) pair. Damage that leaves the draft well-formed is no damage: it stays."""
    if kind == "unusual":
        draft = task.unusual(prompt, rng)
        return draft, draft
    if kind in ("overstep", "scattered"):
        make = task.overstep if kind == "overstep" else task.scattered
        draft, refined = make(prompt, rng)
        return draft, draft if task.well_formed(prompt, draft) else refined
    clean = task.unusual(prompt, rng) if rng.random() < 0.15 else task.clean(prompt, rng)
    draft = clean
    if kind == "edits":
        alphabet = [*units(task.clean(task.sample(rng), rng)), junk(rng)]
        alphabet = [unit for unit in alphabet if not unit.isspace()]
        draft = edit_units(clean, rng, rng.randint(1, 4), alphabet)
    elif kind == "flood":
        draft = task.flood(prompt, clean, rng)
    return draft, draft if task.well_formed(prompt, draft) else clean


def junk(rng: random.Random) -> str:
    """A short string of any characters, as a person at a keyboard may type."""
    ranges = ((33, 126), (33, 126), (192, 591), (0x1F600, 0x1F64F))
    low, high = rng.choice(ranges)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))


def example(task: Task, rng: random.Random, stage: Stage) -> Example:
    """One random training example of a task, as a stage shows it."""
    prompt = task.sample(rng)
    if rng.random() >= 1 - stage.answers.get(task.name, ANSWERS):
        return Example(prompt, None, task.demonstrate(prompt, rng))
    kind = rng.choices(list(stage.kinds), list(stage.kinds.values()))[0]
    draft, refined = draft_pair(task, kind, prompt, rng)
    if kind in WHOLE_KINDS and stage.foreign and rng.random() < stage.foreign:
        draft, refined = _foreign_pair(task, kind, prompt, rng) or (draft, refined)
    return Example(prompt, draft, refined)


def _foreign_pair(
    task: Task, kind: str, prompt: Prompt, rng: random.Random, tries: int = 6
) -> tuple[str, str] | None:
    """A pair written for another prompt whose form fits this one; None where none was drawn."""
    for _ in range(tries):
        other = task.sample(rng)
        draft, refined = draft_pair(task, kind, other, rng)
        sound = task.well_formed(prompt, draft)
        if task.well_formed(prompt, refined) and sound == (draft == refined):
            return draft, refined
    return None


def stage_at(step: int) -> Stage:
    """What is shown at a step."""
    return STAGES[max(start for start in STAGES if start <= step)]


def batch(tasks: Sequence[Task], size: int, seed: int, step: int) -> list[Example]:
    """Batch number `step` of a seed's endless corpus, the tasks in turn."""
    rng, stage = random.Random(f"{seed} {step}"), stage_at(step)
    known = {task.name: task for task in tasks}
    turns = [known[name] for name in stage.tasks if name in known] or tasks
    return [example(turns[i % len(turns)], rng, stage) for i in range(size)]


def texts(tasks: Sequence[Task], count: int, seed: int) -> list[str]:
    """Texts for the tokenizer: prompts, drafts and targets of `count` examples a task."""
    rng, stage = random.Random(f"{seed} tokenizer"), stage_at(0)
    examples = [example(task, rng, stage) for task in tasks for _ in range(count)]
    return [t for e in examples for t in (e.prompt.text, e.draft or "", e.target)]
