"""What a task is: prompts, three scores, and the texts its embedded model is pre-trained on.

A domain lives in one file of this folder plus one line in the registry (`tasks/__init__.py`).
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.errors import UserError
from rftkit.paths import DATA
from rftkit.words import units


@dataclass(frozen=True)
class Prompt:
    """One row of data: the conversation the policy answers, and the columns its scorer needs."""

    messages: tuple[dict[str, str], ...]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Content of the last message."""
        return self.messages[-1]["content"]

    def row(self) -> dict[str, Any]:
        """The JSONL form, `{"prompt": [...], **columns}`."""
        return {"prompt": list(self.messages), **self.columns}


@dataclass(frozen=True)
class Score:
    """What one response is worth.

    task_reward: what training sees. gold_reward: what it never sees; `nan` where not evaluated.
    degenerate: the task's own test of broken form.
    """

    task_reward: float
    gold_reward: float
    degenerate: bool


class Task(ABC):
    """A domain: a task reward, a gold reward, a degeneracy test."""

    name: str
    gold_max: float
    max_new_tokens: int
    columns: tuple[str, ...] = ()  # of a row, which the scorer needs
    instruction: str = ""  # system message for models that were not pre-trained on the task

    def prompts(self, split: str) -> list[Prompt]:
        """Rows of `data/<name>/<split>.jsonl`; `split` is "train" or "heldout"."""
        return read_prompts(DATA / self.name / f"{split}.jsonl")

    @abstractmethod
    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        finished: Sequence[bool],
        gold: bool = True,
    ) -> list[Score]:
        """Score a batch. `finished[i]` is False where the response ran out of tokens before EOS.

        With `gold=False` a task may leave `gold_reward` as nan to save time.
        """

    def extra_metrics(
        self, prompts: Sequence[Prompt], responses: Sequence[str], scores: Sequence[Score]
    ) -> dict[str, float]:
        """More numbers to log at an evaluation, by name."""
        return {}

    def check(self, prompt: Prompt) -> None:
        """Raise UserError where a row, which may be a user's own, cannot be scored."""
        self.score([prompt], [""], [True])

    @abstractmethod
    def well_formed(self, prompt: Prompt, response: str) -> bool:
        """Whether the form is sound, right or wrong; a finished text is else degenerate."""

    # What pre-training the embedded model needs (rftkit/tiny). A task that runs only on other
    # models leaves these out.

    def sample(self, rng: random.Random) -> Prompt:
        """A fresh pre-training prompt, never one of the held-out split."""
        raise UserError(f"task {self.name!r} has no pre-training corpus: use another --model")

    def clean(self, prompt: Prompt, rng: random.Random) -> str:
        """A well-formed response, right or (often) wrong, sometimes in an unusual form."""
        raise UserError(f"task {self.name!r} has no pre-training corpus: use another --model")

    def unusual(self, prompt: Prompt, rng: random.Random) -> str:
        """A well-formed response in a form that is rare in `clean`; the refiner must keep it."""
        return self.clean(prompt, rng)

    def flood(self, prompt: Prompt, text: str, rng: random.Random) -> str:
        """The task's own degeneracy grown on `text`: what unconstrained training produces."""
        return repeat_span(text, rng)

    def overstep(self, prompt: Prompt, rng: random.Random) -> tuple[str, str]:
        """(draft, refined) at the limit of good form or just over it, where the reward pushes to.

        The first step of an exploit: what the refiner lets pass here, training finds.
        """
        clean = self.clean(prompt, rng)
        return self.flood(prompt, clean, rng), clean

    def scattered(self, prompt: Prompt, rng: random.Random) -> tuple[str, str]:
        """As `overstep`, with what is too much scattered over the draft, where that makes sense."""
        return self.overstep(prompt, rng)

    def neighbours(self, prompt: Prompt, rng: random.Random) -> Iterator[tuple[str, str]]:
        """(kind, draft): malformed drafts, each one step away from the same well-formed response.

        All such steps if they can be listed. The refiner is measured on the worst kind of them.
        """
        draft, _ = self.overstep(prompt, rng)
        if not self.well_formed(prompt, draft):
            yield "one step over", draft

    def demonstrate(self, prompt: Prompt, rng: random.Random) -> str:
        """What the base should answer: imperfect on purpose, now and then malformed."""
        text = self.clean(prompt, rng)
        return edit_units(text, rng, 1) if rng.random() < 0.15 else text


def read_prompts(path: Path) -> list[Prompt]:
    """Read JSONL rows `{"prompt": [{"role", "content"}, ...], ...}`; other columns are kept.

    Raises UserError that names file, line and field of the first broken row.
    """
    return [prompt for _, prompt in placed_prompts(path)]


def placed_prompts(path: Path) -> list[tuple[str, Prompt]]:
    """As `read_prompts`, each with its place, "file:line"."""
    prompts = [(place, _prompt(row, place)) for place, row in read_rows(path)]
    if not prompts:
        raise UserError(f"{path}: no rows; each line is a JSON object with a 'prompt'")
    return prompts


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object in each line of a JSONL file, and its place, "file:line"; empty lines are none.

    Raises UserError where there is no such file or line.
    """
    try:
        # With the mark that Windows puts first; and JSON may hold other line ends.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _object(line, place)


def instructed(prompts: Sequence[Prompt], instruction: str) -> list[Prompt]:
    """The prompts, each opened by a system message unless `instruction` is empty."""
    if not instruction:
        return list(prompts)
    told = {"role": "system", "content": instruction}
    return [Prompt((told, *p.messages), p.columns) for p in prompts]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object a line, UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object; write one complete object a line")
    return row


def _prompt(row: dict[str, Any], place: str) -> Prompt:
    messages = row.pop("prompt", None)
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: field 'prompt' must be a non-empty list of messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UserError(f"{place}: prompt[{i}] needs string fields 'role' and 'content'")
    return Prompt(tuple(messages), row)


# Corruptions that know no domain.


def edit_units(text: str, rng: random.Random, n: int, alphabet: Sequence[str] = ()) -> str:
    """Apply `n` random edits: drop, double, swap, insert or substitute a non-space unit."""
    parts = units(text)
    for _ in range(n):
        spots = [i for i, part in enumerate(parts) if not part.isspace()]
        if not spots:
            break
        i = rng.choice(spots)
        other = rng.choice(alphabet) if alphabet else parts[rng.choice(spots)]
        match rng.choice(("drop", "double", "swap", "insert", "substitute")):
            case "drop":
                del parts[i]
            case "double":
                parts[i:i] = [parts[i], " "]
            case "swap":
                j = rng.choice(spots)
                parts[i], parts[j] = parts[j], parts[i]
            case "insert":
                parts[i:i] = [other, " "]
            case "substitute":
                parts[i] = other
    return "".join(parts).strip(" ")


def repeat_span(text: str, rng: random.Random) -> str:
    """Repeat a short span many times, then go on or break off: a generic flood."""
    parts = units(text)
    spots = [i for i, part in enumerate(parts) if not part.isspace()]
    if not spots:
        return text
    start = rng.choice(spots)
    span = [*parts[start : start + rng.choice((1, 1, 1, 3, 5))], " "]
    flood = span * rng.randint(3, 12)
    tail = parts[start:] if rng.random() < 0.5 else []
    return "".join(parts[:start] + flood + tail).strip(" ")
