"""Token diff of a response and its refined response, for eyes: terminal, notebook, JSON.

A smallest edit script of kept, deleted and inserted tokens; between two kept runs all deletions
come first. Text from a model is hostile until shown otherwise: renderers escape it and make control
characters visible.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from rftkit.metrics import as_codes

T = TypeVar("T", str, int)

# Blue underlined and orange struck through: told apart without red and green, and without colour.
_ANSI = {"equal": "", "delete": "\x1b[9;38;5;208m", "insert": "\x1b[4;38;5;33m"}
_HTML = {
    "equal": ("span", ""),
    "delete": ("del", "color:#7a3300;background:#fde3cf;text-decoration:line-through"),
    "insert": ("ins", "color:#00466e;background:#d6ebf8;text-decoration:underline"),
}


def diff(a: Sequence[T], b: Sequence[T]) -> list[tuple[str, list[T]]]:
    """Runs `(op, tokens)` that turn `a` into `b`; op is "equal", "delete" or "insert".

    Neighbouring runs differ in op. Equal and delete runs join to `a`, equal and insert runs to `b`.
    """
    from rapidfuzz.distance import Levenshtein

    runs: list[tuple[str, list[T]]] = []
    opcodes = Levenshtein.opcodes(*as_codes(a, b))
    for changed, group in groupby(opcodes, key=lambda code: code.tag != "equal"):
        # rapidfuzz may cut one change in several opcodes; together they are one span on each side
        codes = list(group)
        first, last = codes[0], codes[-1]
        old = list(a[first.src_start : last.src_end])
        new = list(b[first.dest_start : last.dest_end])
        runs += [("delete", old), ("insert", new)] if changed else [("equal", old)]
    return [(op, tokens) for op, tokens in runs if tokens]


def text_diff(tokens_a: Sequence[str], tokens_b: Sequence[str]) -> list[list[str]]:
    """The diff as `[[op, text], ...]`, with the texts of each run's tokens joined."""
    runs = [(op, text) for op, tokens in diff(tokens_a, tokens_b) if (text := "".join(tokens))]
    merged = groupby(runs, key=lambda run: run[0])
    return [[op, "".join(text for _, text in group)] for op, group in merged]


def to_ansi(pieces: Iterable[Sequence[str]]) -> str:
    """`[[op, text], ...]` for a terminal: inserts blue underlined, deletes orange struck out."""

    def paint(op: str, text: str) -> str:
        return f"{_ANSI[op]}{text}\x1b[0m" if _ANSI[op] else text

    return _render(pieces, paint)


def to_html(pieces: Iterable[Sequence[str]]) -> str:
    """`[[op, text], ...]` as an HTML fragment that keeps white space and runs nothing."""

    def paint(op: str, text: str) -> str:
        tag, style = _HTML[op]
        return f'<{tag} style="{style}">{html.escape(text)}</{tag}>' if style else html.escape(text)

    return f'<span style="white-space:pre-wrap">{_render(pieces, paint)}</span>'


def visible(text: str) -> str:
    """`text` with every character that a screen would obey, or hide, replaced by a sign for it.

    New lines and tabs stay. U+001B becomes ␛; invisible ones without such a sign, as U+202E, which
    turns the writing direction, become \\u202e.
    """
    return "".join(map(_visible_character, text))


def _render(pieces: Iterable[Sequence[str]], paint: Callable[[str, str], str]) -> str:
    # a changed line end is itself a change to see
    shown = (
        (op, visible(text) if op == "equal" else visible(text).replace("\n", "⏎\n"))
        for op, text in pieces
    )
    return "".join(paint(op, text) for op, text in shown)


def _visible_character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + code) if code < 0x20 else "␡"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
