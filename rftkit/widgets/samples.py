"""A recorded response as HTML: its diff to the refined response, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.diff import to_html
from rftkit.widgets.parts import escape
from rftkit.words import word_diff, word_edit_ratio

Row = dict[str, Any]  # a line of samples.jsonl


def sample_html(row: Row, title: str = "", prompt: bool = True) -> str:
    """One block: title, prompt, the response with the refiner's edits in it, and its scores.

    The records keep text, not tokens, so this diff goes by words.
    """
    ratio = sample_edit_ratio(row)
    edits = "not refined" if ratio is None else f"edit ratio {ratio:.2f} (by words)"
    rewards = f"task reward {row['task_reward']:.2f} · gold reward {row['gold_reward']:.2f}"
    parts = [
        f"<b>{escape(title)}</b>" if title else "",
        f"prompt: {escape(row['prompt'])}" if prompt else "",
        f'<span style="font-size:110%">{_diff(row)}</span>',
        f'<span style="opacity:.75">{rewards} · {edits}</span>',
    ]
    body = "<br>".join(part for part in parts if part)
    look = 'class="mathjax_ignore" style="line-height:1.5;margin:6px 0 12px;max-width:900px"'
    return f"<div {look}>{body}</div>"  # in which Jupyter would typeset what stands between $ signs


def sample_edit_ratio(row: Row) -> float | None:
    """Edit ratio by words, 0 to 1; None where the run did not refine."""
    if row["refined"] is None:
        return None
    return word_edit_ratio(row["response"], row["refined"])


def worst(rows: Sequence[Row]) -> Row:
    """The response of lowest gold reward; of equals, the one that the refiner changes most."""
    return min(rows, key=lambda row: (row["gold_reward"], -(sample_edit_ratio(row) or 0.0)))


def latest(rows: Sequence[Row], step: int) -> list[Row]:
    """The samples of the last evaluation up to `step`; of the first one before that."""
    steps = {row["step"] for row in rows}
    if not steps:
        return []
    chosen = max((s for s in steps if s <= step), default=min(steps))
    return [row for row in rows if row["step"] == chosen]


def _diff(row: Row) -> str:
    if row["refined"] is None:
        return to_html([["equal", row["response"]]])
    return to_html(word_diff(row["response"], row["refined"]))
