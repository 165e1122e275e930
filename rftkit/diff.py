"""Token diff of a response and its refined response, for eyes: terminal, notebook, JSON.

A smallest edit script of kept, deleted and inserted tokens; between two kept runs all deletions
come first. Text from a model is hostile until shown otherwise: renderers escape it and make control
characters visible.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from rftkit.metrics import as_codes
from rftkit.visible import visible as visible

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
    """`[[op, text], ...]` as an HTML fragment that keeps white space, runs and typesets nothing."""

    def paint(op: str, text: str) -> str:
        tag, style = _HTML[op]
        return f'<{tag} style="{style}">{html.escape(text)}</{tag}>' if style else html.escape(text)

    shown = _render(pieces, paint)  # in which Jupyter would typeset what stands between $ signs
    return f'<span class="mathjax_ignore" style="white-space:pre-wrap">{shown}</span>'


def _render(pieces: Iterable[Sequence[str]], paint: Callable[[str, str], str]) -> str:
    # a changed line end is itself a change to see
    shown = (
        (op, visible(text) if op == "equal" else visible(text).replace("\n", "⏎\n"))
        for op, text in pieces
    )
    return "".join(paint(op, text) for op, text in shown)
