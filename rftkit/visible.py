"""Hostile text made harmless: what a screen would obey, or hide, becomes a sign to read."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 600  # characters of a message for the user


def visible(text: str) -> str:
    """`text` with every character that a screen would obey, or hide, replaced by a sign for it.

    New lines and tabs stay. U+001B becomes ␛; invisible ones without such a sign, as U+202E, which
    turns the writing direction, become \\u202e.
    """
    return "".join(map(_visible_character, text))


def one_line(text: str) -> str:
    """`text` as one line of bounded length that commands no terminal, the middle left out."""
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
    return visible(" ".join(text.split()))


def _visible_character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + code) if code < 0x20 else "␡"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
