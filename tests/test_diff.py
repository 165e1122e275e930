import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.diff import diff, text_diff, to_ansi, to_html, visible

IDS = st.lists(st.integers(-3, 6), max_size=20)
WORDS = st.lists(st.sampled_from(["", "a", "b", "ab", " ", "\n", "<b>"]), max_size=20)
HOSTILE = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(IDS, IDS)
def test_the_runs_rebuild_both_sides(a: list[int], b: list[int]) -> None:
    runs = diff(a, b)
    assert [t for op, tokens in runs if op != "insert" for t in tokens] == a
    assert [t for op, tokens in runs if op != "delete" for t in tokens] == b
    assert all(tokens for _, tokens in runs)
    ops = [op for op, _ in runs]
    assert all(x != y for x, y in pairwise(ops))


@given(WORDS, WORDS)
def test_the_texts_rebuild_both_sides(a: list[str], b: list[str]) -> None:
    pieces = text_diff(a, b)
    assert "".join(text for op, text in pieces if op != "insert") == "".join(a)
    assert "".join(text for op, text in pieces if op != "delete") == "".join(b)
    assert all(text for _, text in pieces)
    ops = [op for op, _ in pieces]
    assert all(x != y for x, y in pairwise(ops))


def test_only_what_differs_is_marked() -> None:
    a = ["One", " tea", " tea", " please", "."]
    b = ["One", " tea", ",", " please", "."]
    assert text_diff(a, b) == [
        ["equal", "One tea"],
        ["delete", " tea"],
        ["insert", ","],
        ["equal", " please."],
    ]
    assert text_diff(a, a) == [["equal", "One tea tea please."]]
    assert text_diff([], ["x"]) == [["insert", "x"]]
    assert text_diff([], []) == []


def test_one_change_is_one_delete_and_one_insert() -> None:
    assert diff([1, 2, 3, 4, 9], [1, 5, 6, 9]) == [
        ("equal", [1]),
        ("delete", [2, 3, 4]),
        ("insert", [5, 6]),
        ("equal", [9]),
    ]


def test_terminal_marks_do_not_rest_on_colour_alone() -> None:
    shown = to_ansi([["equal", "a"], ["delete", "b"], ["insert", "c"]])
    assert shown.startswith("a")
    assert re.search(r"\x1b\[9;[0-9;]*mb\x1b\[0m", shown), "deleted text is struck through"
    assert re.search(r"\x1b\[4;[0-9;]*mc\x1b\[0m", shown), "inserted text is underlined"


@given(HOSTILE, st.sampled_from(["equal", "delete", "insert"]))
def test_text_cannot_command_the_terminal(text: str, op: str) -> None:
    bare = re.sub(r"\x1b\[[0-9;]*m", "", to_ansi([[op, text]]))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", bare)
    bare.encode()  # no lone surrogate that would crash a terminal or a file


def test_an_escape_sequence_in_the_text_is_shown_as_text() -> None:
    assert to_ansi([["equal", "\x1b[2J\x1b[31mhi\r"]]) == "␛[2J␛[31mhi␍"
    assert visible("\x7f\x9b\u202e\ud800\U000e0041") == "␡\\u009b\\u202e\\ud800\\U000e0041"
    assert visible("é\t漢字 🙂\n") == "é\t漢字 🙂\n"


@given(HOSTILE, st.sampled_from(["equal", "delete", "insert"]))
def test_html_holds_only_our_own_tags(text: str, op: str) -> None:
    tags = re.findall(r"<[^>]*>", to_html([[op, text + "<script>'\"&"]]))
    ours = r"</?(span|ins|del)( class=\"mathjax_ignore\")?( style=\"[a-z0-9:;#-]+\")?>"
    assert all(re.fullmatch(ours, tag) for tag in tags)


def test_html_marks_inserts_and_deletes_as_such() -> None:
    shown = to_html([["equal", "a"], ["delete", "<b>"], ["insert", "c"]])
    assert re.search(r"<del [^>]*line-through[^>]*>&lt;b&gt;</del>", shown)
    assert re.search(r"<ins [^>]*underline[^>]*>c</ins>", shown)


@pytest.mark.parametrize("render", [to_ansi, to_html])
def test_a_changed_line_end_shows(render) -> None:
    assert "⏎\n" in render([["insert", "\n"]])
    assert "⏎" not in render([["equal", "\n"]])
