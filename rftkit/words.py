"""Text by words: how it is split, diffed and compared where records keep text and not tokens."""

from __future__ import annotations

import re

from rftkit.diff import text_diff
from rftkit.metrics import edit_ratio

# A unit is a word, a run of white space or one other character.
_UNIT = re.compile(r"\w+|\s+|[^\w\s]")


def units(text: str) -> list[str]:
    """Split into words, runs of white space and single marks; joining them gives `text` back."""
    return _UNIT.findall(text)


def word_diff(response: str, refined: str) -> list[list[str]]:
    """The diff as `[[op, text], ...]`, as `rftkit.diff.text_diff` gives it for tokens."""
    return text_diff(units(response), units(refined))


def word_edit_ratio(response: str, refined: str) -> float:
    """Edit ratio by words, 0 to 1."""
    return edit_ratio(units(response), units(refined))
