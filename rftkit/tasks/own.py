"""A user's own data and reward, in place of a task's or without any task of ours.

Rows are JSONL as everywhere here; every fifth is held out. The reward is called like a reward
function of TRL, so that one function serves both:

    def reward(prompts, completions, **columns) -> list[float]

prompts: lists of messages; completions: lists of one assistant message; columns: lists by name.
A gold reward of the user's own is called likewise, on held-out prompts alone: it judges what the
training on the reward came to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from rftkit.errors import UserError
from rftkit.metrics import rep_3
from rftkit.plugins import in_a_line, load_function
from rftkit.tasks.base import Prompt, Score, Task, placed_prompts

HELD_OUT_EVERY = 5
LARGEST = 1e30  # of a reward; sums of larger ones overflow
LOOPS = 0.5  # share of repeated 3-grams above which a response counts as degenerate

Reward = Callable[..., Any]


class OwnTask(Task):
    """`base` with another file of prompts, another task reward, another gold reward, or all three.

    An own gold reward should be 1 where it is best. Without one and without a base it is the task
    reward on held-out prompts. Without a base degenerate is what is empty, runs out of tokens, or
    mostly repeats itself.
    """

    name = "own"
    gold_max = 1.0
    max_new_tokens = 128

    def __init__(self, data: str, reward: str, base: Task | None, gold: str = ""):
        """Raises UserError where data, reward or gold are broken or missing."""
        if base is None and not (data and reward):
            missing = "reward" if data else "data"
            raise UserError(f"{missing}: task 'own' needs --data FILE and --reward MODULE:FUNCTION")
        self.data, self.base = data, base
        self._names = {"reward": reward, "gold": gold}
        self._functions: dict[str, Reward] = {
            field: load_function(field, name, "my_rewards:short")
            for field, name in self._names.items()
            if name
        }
        if base is not None:
            self.name, self.gold_max = base.name, base.gold_max
            self.max_new_tokens, self.instruction = base.max_new_tokens, base.instruction
        if gold:
            self.gold_max = 1.0
        if data:
            self._check_rows()

    def prompts(self, split: str) -> list[Prompt]:
        if not self.data:
            assert self.base is not None
            return self.base.prompts(split)
        held_out = split == "heldout"
        return [p for i, p in enumerate(self.rows) if (i % HELD_OUT_EVERY == 0) == held_out]

    @cached_property
    def rows(self) -> list[Prompt]:
        """All rows of the file, in order."""
        return [prompt for _, prompt in self._placed]

    @cached_property
    def _placed(self) -> list[tuple[str, Prompt]]:
        return placed_prompts(Path(self.data))

    def _check_rows(self) -> None:
        if len(self.rows) < 2:
            raise UserError(f"{self.data}: one row is too few; one is held out")
        for place, prompt in self._placed:
            taken = {"prompts", "completions"} & prompt.columns.keys()
            if self._functions and taken:
                raise UserError(
                    f"{place}: a column cannot be called {min(taken)}, which is another argument "
                    "of the reward function; rename it"
                )
            if self.base is None:
                continue
            missing = [name for name in self.base.columns if name not in prompt.columns]
            if missing:
                raise UserError(
                    f"{place}: lacks {', '.join(missing)}, by which task {self.name} scores; "
                    "add them, or take --task own and a --reward"
                )
            try:
                self.base.check(prompt)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        finished: Sequence[bool],
        gold: bool = True,
    ) -> list[Score]:
        """As `Task.score`. Raises UserError where a reward function fails.

        A reward that is not finite is such a failure where it is to be judged by (`gold`). In
        training it passes, and costs its step alone; see `rftkit.health`.
        """
        if self.base is not None:
            scores = self.base.score(prompts, responses, finished, gold)
        else:
            sound = [
                end and self.well_formed(prompt, response)
                for prompt, response, end in zip(prompts, responses, finished, strict=True)
            ]
            scores = [Score(0.0, math.nan, not ok) for ok in sound]
        rewards = [s.task_reward for s in scores]
        if "reward" in self._functions:
            rewards = self._call("reward", prompts, responses, gold)
        golds = rewards if self.base is None else [s.gold_reward for s in scores]
        if "gold" in self._functions:
            unseen = [math.nan] * len(scores)
            golds = self._call("gold", prompts, responses, gold) if gold else unseen
        return [
            replace(s, task_reward=r, gold_reward=g)
            for s, r, g in zip(scores, rewards, golds, strict=True)
        ]

    def well_formed(self, prompt: Prompt, response: str) -> bool:
        if self.base is not None:
            return self.base.well_formed(prompt, response)
        return bool(response.strip()) and rep_3(response.split()) <= LOOPS

    def extra_metrics(
        self, prompts: Sequence[Prompt], responses: Sequence[str], scores: Sequence[Score]
    ) -> dict[str, float]:
        return {} if self.base is None else self.base.extra_metrics(prompts, responses, scores)

    def _call(
        self, field: str, prompts: Sequence[Prompt], responses: Sequence[str], gold: bool
    ) -> list[float]:
        names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
        # Copies: what a user's function does to its arguments stays there.
        columns = {name: [deepcopy(p.columns.get(name)) for p in prompts] for name in names}
        completions = [[{"role": "assistant", "content": text}] for text in responses]
        place = f"{field}: {self._names[field]}"
        try:
            values = self._functions[field](
                prompts=[deepcopy(list(p.messages)) for p in prompts],
                completions=completions,
                **columns,
            )
        except (Exception, SystemExit) as error:
            raise UserError(f"{place} failed with {in_a_line(error)}") from None
        if not isinstance(values, Sequence) or len(values) != len(responses):
            raise UserError(
                f"{place} must return a list with one number a completion ({len(responses)} here), "
                f"not {type(values).__name__}"
            )
        for value in values:
            if not _is_number(value) or (gold and not abs(float(value)) < LARGEST):
                raise UserError(f"{place} returned {value!r}; each reward must be a finite number")
        return [float(value) for value in values]


def _is_number(value: object) -> bool:
    """Whether it is a number that a float can hold; 10**400 is none."""
    if not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
