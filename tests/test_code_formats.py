"""APPS, HumanEval and MBPP files become prompts that the code task scores in the sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rftkit.errors import UserError
from rftkit.tasks.base import Prompt
from rftkit.tasks.code import Code
from rftkit.tasks.code_formats import read_apps, read_humaneval, read_mbpp

DATA = Path(__file__).parent / "data"
Reader = Callable[[Path], list[Prompt]]

RIGHT = {
    "apps": [
        "import sys\nfor line in sys.stdin:\n    a, b = map(int, line.split())\n    print(a + b)",
        "def larger(a, b):\n    return max(a, b)",
    ],
    "humaneval": [
        "def add_one(x: int) -> int:\n    return x + 1",
        "from typing import List\n\n\ndef doubled(v: List[int]):\n    return [2 * i for i in v]\n",
    ],
    "mbpp": [
        "def count_even(a):\n    return sum(i % 2 == 0 for i in a)",
        "def dashed(words):\n    return '-'.join(words)",
    ],
}
# Each meets the visible test alone.
NEARLY = {
    "apps": [
        "print(3)\nprint(7)",
        "def larger(a, b):\n    return b",
    ],
    "humaneval": [
        "def add_one(x):\n    return 3",
        "def doubled(values):\n    return []",
    ],
    "mbpp": ["def count_even(a):\n    return 2"],
}
READERS: dict[str, Reader] = {"apps": read_apps, "humaneval": read_humaneval, "mbpp": read_mbpp}


def read(kind: str) -> list[Prompt]:
    with pytest.warns(UserWarning, match="rows left out"):
        return READERS[kind](DATA / f"{kind}.jsonl")


@pytest.mark.parametrize("kind", READERS)
def test_right_programs_earn_the_gold_reward(kind: str) -> None:
    prompts, programs = read(kind), RIGHT[kind]
    for score in Code("plain").score(prompts, programs, [True] * len(prompts)):
        assert (score.task_reward, score.gold_reward, score.degenerate) == (1, 1, False)


@pytest.mark.parametrize("kind", READERS)
def test_programs_made_for_the_visible_test_are_reported_as_gamed(kind: str) -> None:
    programs = NEARLY[kind]
    prompts = read(kind)[: len(programs)]
    task = Code("plain")
    scores = task.score(prompts, programs, [True] * len(prompts))
    assert [(score.task_reward, score.gold_reward) for score in scores] == [(1, 0)] * len(programs)
    assert task.extra_metrics(prompts, programs, scores) == {"gamed": 1.0}


def test_asserts_become_calls_with_literal_expectations() -> None:
    add_one, doubled = read("humaneval")
    assert add_one.columns["tests"] == [{"call": "add_one(2)", "expect": "3"}]
    assert add_one.columns["hidden_tests"] == [
        {"call": "add_one(-1)", "expect": "0"},
        {"call": "add_one(7)", "expect": "8"},
    ]
    assert "def add_one(x: int)" in add_one.text
    assert doubled.columns["name"] == "doubled"


def test_a_single_test_is_visible_and_hidden() -> None:
    dashed = read("mbpp")[1]
    test = {"call": "dashed(('a', 'b'))", "expect": "'a-b'"}
    assert dashed.columns["tests"] == dashed.columns["hidden_tests"] == [test]
    assert dashed.text.endswith("Name the function dashed.")


@pytest.mark.parametrize(
    ("kind", "summary"),
    [
        ("apps", "2 of 4 rows left out (1 ask for a method of a class; 1 without tests), 0 tests"),
        ("humaneval", "1 of 3 rows left out (1 without a test of the form f(literals) == literal)"),
        ("mbpp", "1 of 3 rows left out (1 need set-up code for their tests), 1 tests"),
    ],
)
def test_what_is_left_out_is_told_in_one_line(kind: str, summary: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(summary)):
        READERS[kind](DATA / f"{kind}.jsonl")


def test_printed_answers_are_compared_word_by_word(tmp_path: Path) -> None:
    pairs = {"inputs": [["2", "ab"]], "outputs": [["ab", "ab"]]}
    row = {"question": "Repeat a word.", "input_output": json.dumps(pairs)}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    prompts = read_apps(tmp_path / "rows.jsonl")
    programs = [
        "count, word = int(input()), input()\nfor _ in range(count):\n    print(word, end='  \\n')",
        "print('abab')",
        "import os\nos._exit(0)",
    ]
    scores = Code("plain").score(prompts * 3, programs, [True] * 3)
    assert [score.gold_reward for score in scores] == [1, 0, 0]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.jsonl:1: not a JSON object"),
        ("[]", "x.jsonl:1: not a JSON object"),
        ("{}", "x.jsonl:1: field '.*' is missing"),
        ("", "no row can be scored"),
    ],
)
def test_broken_files_are_told_by_line_and_field(
    kind: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        READERS[kind](tmp_path / "x.jsonl")


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_mbpp(tmp_path / "none.jsonl")


@pytest.mark.parametrize("kind", READERS)
def test_the_mark_that_windows_puts_first_is_no_row(kind: str, tmp_path: Path) -> None:
    text = (DATA / f"{kind}.jsonl").read_text(encoding="utf-8")
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8-sig")
    with pytest.warns(UserWarning, match="rows left out"):
        assert READERS[kind](tmp_path / "x.jsonl") == read(kind)
