"""`rftkit chat`: what policy, reference and refiner say to a prompt, in columns of a terminal.

The refiner is the run's own, where it trained with another one than the reference.

Text from a model is hostile until shown otherwise: control characters become visible signs.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from rftkit.constraints import make_constraint
from rftkit.diff import to_ansi, visible
from rftkit.errors import UserError
from rftkit.files import find_folder
from rftkit.models import load_policy
from rftkit.refiner import Refinement
from rftkit.rollout import generate
from rftkit.runs import RunFolder
from rftkit.tasks import task_of

NARROWEST = 20  # characters of a column


class Chat:
    """A run's policy beside its reference; greedy, so that a prompt gets one answer."""

    def __init__(self, run: Path):
        """Raises UserError where `run` holds no run or no checkpoint yet."""
        folder = RunFolder(run)
        config = folder.config()
        adapter = find_folder(folder.checkpoint)
        if adapter is None:
            raise UserError(f"{run}: has no checkpoint yet; let it train on")
        task = task_of(config)
        self.limit = config.max_new_tokens or task.max_new_tokens
        self.policy = load_policy(config.model, config.precision, config.device, adapter=adapter)
        self.told = "" if self.policy.refines_natively else task.instruction
        settings = replace(config, max_new_tokens=self.limit)
        self.refiner = make_constraint(self.policy, settings).sample_refiner()

    def answer(self, prompt: str) -> tuple[str, Refinement]:
        """The reference's response, and the policy's with its refinement."""
        system = [{"role": "system", "content": self.told}] if self.told else []
        messages = [*system, {"role": "user", "content": prompt}]
        ids = self._respond(messages)
        with self.policy.reference():
            reference = self._respond(messages)
        return self.policy.decode(reference), self.refiner.refine_ids([messages], [ids])[0]

    def _respond(self, messages: Sequence[dict[str, str]]) -> list[int]:
        policy = self.policy
        out = generate(
            policy.model,
            [policy.encode_chat(messages)],
            max_new_tokens=self.limit,
            eos_ids=policy.eos_ids,
            pad_id=policy.pad_id,
            temperature=0,
        )
        return out.ids[0]


def chat(run: Path, prompts: Iterable[str]) -> Iterator[str]:
    """Yield one block of text a prompt: three columns, then the refiner's edits.

    To a prompt that cannot be answered, as one that is too long, it says why in a line.
    """
    with_run = Chat(run)
    for prompt in prompts:
        if not prompt.strip():
            continue
        try:
            answer = with_run.answer(prompt.strip())
        except UserError as error:
            yield f"prompt: {error}"
        else:
            yield block(*answer)


def block(reference: str, refinement: Refinement, width: int = 0) -> str:
    """The three texts side by side in `width` characters (0 = the terminal's), and the edits."""
    width = width or shutil.get_terminal_size().columns
    column = max(NARROWEST, (width - 6) // 3)
    texts = {
        "policy": refinement.response,
        "reference": reference,
        "refined": refinement.refined,
    }
    columns = [[title, "─" * column, *_wrap(text, column)] for title, text in texts.items()]
    rows = zip_longest(*columns, fillvalue="")
    lines = ["   ".join(cell.ljust(column) for cell in row).rstrip() for row in rows]
    if refinement.fallback:
        lines.append(f"refused: {refinement.fallback}; the response stays")
    elif refinement.changed:
        lines.append(f"edits: {to_ansi(refinement.diff)}")
    lines.append(f"edit ratio: {refinement.edit_ratio:.3f}")
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; its own line breaks stay."""
    shown = visible(text).expandtabs(4)
    return [part for line in shown.split("\n") for part in textwrap.wrap(line, width) or [""]]
