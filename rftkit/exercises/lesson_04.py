"""Lesson 04: the online refiner."""

from __future__ import annotations

from typing import Any

from rftkit.exercises import Exercise
from rftkit.metrics import edit_ratio, kept_fraction

DRAFT = "Hello , Ana ! One tea . Thanks ! Thanks ! Thanks !".split()
REFINED = "Hello , Ana ! One tea . Thanks !".split()
# Drafts and what the model would write after each prefix of them, one token more than the draft.
CASES = (
    ("a b c .", "a b c . ."),
    ("a b b .", "a b c . ."),
    ("x b c .", "a b c . ."),
    ("a x c .", "a b c . ."),
)


def next_tokens(draft: list[str], wanted: list[str]) -> list[str]:
    """What one pass decides: the draft's agreeing start, then the model's own next token."""
    agreed = agreeing_start(draft, wanted)
    return [*agreed, wanted[len(agreed)]]


def agreeing_start(draft: list[str], wanted: list[str]) -> list[str]:
    pairs = list(zip(draft, wanted, strict=False))
    end = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return draft[:end]


def agreeing_anywhere(draft: list[str], wanted: list[str]) -> list[str]:
    return [a for a, b in zip(draft, wanted, strict=False) if a == b]


def all_wanted(draft: list[str], wanted: list[str]) -> list[str]:
    return list(wanted)


def _decisions(function: Any) -> list[str]:
    return [" ".join(function(a.split(), b.split())) for a, b in CASES]


EXERCISES = {
    "04.1": Exercise(
        right=lambda: edit_ratio(DRAFT, REFINED),
        because="4 of the 13 tokens are deleted and nothing else changes: 4/13.",
        mistakes=(
            (
                lambda: (len(DRAFT) - len(REFINED)) / len(REFINED),
                "You divided by the length of the refined response; it is the longer of the two.",
            ),
            (
                lambda: len(DRAFT) - len(REFINED),
                "That is the number of edits. The ratio divides it by the longer length.",
            ),
            (
                lambda: kept_fraction(DRAFT, REFINED),
                "That is the fraction kept. The edit ratio is what was changed.",
            ),
        ),
        otherwise="Count the tokens of the response (13, marks included) and the deletions, "
        "insertions and substitutions it takes.",
    ),
    "04.2": Exercise(
        right=lambda: 1,
        because="one pass over prompt and draft shows for every token that the model agrees.",
        mistakes=(
            (
                lambda: 20,
                (
                    "So many does plain decoding need. Here the draft is read at once and checked "
                    "in parallel."
                ),
            ),
            (
                lambda: 0,
                "Nothing is believed unread: the model must see the draft to agree with it.",
            ),
            (
                lambda: 2,
                "EOS stands in the draft and is checked with the rest; nothing is left to do.",
            ),
        ),
        otherwise="How many forward passes does it take to get the model's next token at *every* "
        "position of a text that is already there?",
    ),
    "04.3": Exercise(
        right=lambda: 3 / 4,
        because="of the 4 malformed drafts 3 were made well-formed; the well-formed ones have no "
        "say in the fix rate.",
        mistakes=(
            (
                lambda: 3 / 10,
                "The fix rate looks at malformed drafts only: there are 4 of them.",
            ),
            (
                lambda: (5 + 3) / 10,
                (
                    "That is the share of drafts that come out well-formed. A refiner that does "
                    "nothing would score well on it."
                ),
            ),
            (
                lambda: 1 / 6,
                "That is the break rate: well-formed drafts that were made malformed.",
            ),
        ),
        otherwise="Fix rate = malformed drafts made well-formed / malformed drafts.",
    ),
    "04.4": Exercise(
        right=lambda: next_tokens,
        because="each pass decides at least one token, so it is never slower in passes than plain "
        "decoding, and never decides what the model would not have written.",
        mistakes=(
            (
                lambda: agreeing_start,
                (
                    "Where the draft is wrong, the model's own token is known as well: add it. "
                    "Without it a pass may decide nothing."
                ),
            ),
            (
                lambda: agreeing_anywhere,
                (
                    "Stop at the first disagreement: what the model wants later was computed on "
                    "the wrong prefix."
                ),
            ),
            (
                lambda: all_wanted,
                (
                    "After the first disagreement `wanted` was computed on a draft that is not "
                    "going to be written; it is worth nothing."
                ),
            ),
        ),
        otherwise="A function of two lists of tokens that returns a list: the draft's tokens as "
        "long as draft[i] == wanted[i], then wanted at the place where that ends.",
        view=_decisions,
    ),
}
