"""Benchmarks of others as prompts of the code task: APPS, HumanEval, MBPP from a local JSONL file.

Nothing is downloaded and nothing is run here. Asserts of the form `f(literals) == literal` become
(call, expected value) pairs; the sandbox then compares values, never an exit code. What cannot be
expressed so is left out, and one warning says how much and why.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rftkit.errors import UserError
from rftkit.tasks.base import Prompt, read_rows

Row = dict[str, Any]
Test = dict[str, str]
Call = tuple[str, str, str]  # of `assert f(1, 2) == 3`: "f", "(1, 2)", "3"

VISIBLE = 1  # tests of a row that training sees; a row with a single test uses it twice
MAX_HIDDEN = 16  # some APPS rows have hundreds


class _UnusableError(Exception):
    """Why a row cannot be scored here."""


def read_apps(path: Path) -> list[Prompt]:
    """Rows with `question`, `input_output` (JSON text) and perhaps `starter_code`.

    Programs over stdin keep their (stdin, stdout) pairs; rows with `fn_name` become calls.
    Raises UserError that names file, line and field, or where no row can be used.
    """
    return _read(path, _apps)


def read_humaneval(path: Path) -> list[Prompt]:
    """Rows with `prompt` (the head of a function), `entry_point` and `test` (a `check` function).

    Raises UserError that names file, line and field, or where no row can be used.
    """
    return _read(path, _humaneval)


def read_mbpp(path: Path) -> list[Prompt]:
    """Rows with `text` (or `prompt`, in the sanitized file) and `test_list` (asserts).

    Raises UserError that names file, line and field, or where no row can be used.
    """
    return _read(path, _mbpp)


def _read(path: Path, convert: Callable[[Row, str], tuple[Prompt, int]]) -> list[Prompt]:
    prompts: list[Prompt] = []
    reasons: Counter[str] = Counter()
    tests_left = 0
    for place, row in read_rows(path):
        try:
            prompt, left = convert(row, place)
        except _UnusableError as reason:
            reasons[str(reason)] += 1
        else:
            prompts.append(prompt)
            tests_left += left
    told = [f"{count} {reason}" for reason, count in reasons.items()]
    summary = f"{reasons.total()} of {reasons.total() + len(prompts)} rows left out"
    summary += f" ({'; '.join(told)})" if told else ""
    if not prompts:
        raise UserError(f"{path}: {summary}; no row can be scored")
    if reasons or tests_left:
        warnings.warn(f"{path}: {summary}, {tests_left} tests of the others", stacklevel=3)
    return prompts


def _field(row: Row, place: str, *keys: str) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise UserError(f"{place}: field {keys[0]!r} is missing; is the file in another format?")


def _text(row: Row, place: str, *keys: str) -> str:
    value = _field(row, place, *keys)
    if not isinstance(value, str):
        raise UserError(f"{place}: field {keys[0]!r} must be a text")
    return value


def _humaneval(row: Row, place: str) -> tuple[Prompt, int]:
    head, name = _text(row, place, "prompt"), _text(row, place, "entry_point")
    tree = _tree(_text(row, place, "test"))
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.args.args]
    check = next((node for node in checks if node.name == "check"), None)
    if check is None:
        raise _UnusableError("without a function check(candidate)")
    asserts = [node for node in ast.walk(check) if isinstance(node, ast.Assert)]
    # An assert within a loop or a branch depends on more than itself.
    calls = [_literal_call(node) for node in asserts if node in check.body]
    tests = _tests(calls, check.args.args[0].arg, name)
    text = f"Complete this function; write all of it.\n\n{head}"
    return _prompt(text, name, tests), len(asserts) - len(tests)


def _mbpp(row: Row, place: str) -> tuple[Prompt, int]:
    text, lines = _text(row, place, "text", "prompt"), _field(row, place, "test_list")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{place}: field 'test_list' must be a list of texts")
    if row.get("test_setup_code") or row.get("test_imports"):
        raise _UnusableError("need set-up code for their tests")
    calls = [_literal_call(node) for line in lines for node in _tree(line).body]
    name = next((call[0] for call in calls if call), "")
    tests = _tests(calls, name, name)
    return _prompt(f"{text}\nName the function {name}.", name, tests), len(calls) - len(tests)


def _apps(row: Row, place: str) -> tuple[Prompt, int]:
    question, pairs = _text(row, place, "question"), _pairs(row, place)
    name, starter = pairs.get("fn_name"), row.get("starter_code") or ""
    if "class " in starter:
        raise _UnusableError("ask for a method of a class")
    both = list(zip(pairs["inputs"], pairs["outputs"], strict=False))
    if name is None:
        tests = [{"stdin": _lines(given), "stdout": _lines(wanted)} for given, wanted in both]
        ask = "Write a program that reads standard input and prints the answer."
    else:
        tests = _tests([_apps_call(name, *pair) for pair in both], name, name)
        ask = f"Name the function {name}."
    text = "\n".join(filter(None, (question, starter, ask)))
    return _prompt(text, name, tests), len(both) - len(tests)


def _pairs(row: Row, place: str) -> Row:
    pairs = row.get("input_output")
    try:
        pairs = json.loads(pairs) if isinstance(pairs, str) and pairs else pairs
    except (ValueError, RecursionError):
        raise UserError(f"{place}: field 'input_output' is not a JSON text") from None
    if not pairs:
        raise _UnusableError("without tests")
    lists = ("inputs", "outputs")
    if not isinstance(pairs, dict) or not all(isinstance(pairs.get(key), list) for key in lists):
        raise UserError(f"{place}: field 'input_output' needs the lists 'inputs' and 'outputs'")
    return pairs


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _apps_call(name: str, arguments: Any, output: Any) -> Call | None:
    if not isinstance(arguments, list):
        return None
    # APPS wraps the result of a call in a list of one.
    expected = output[0] if isinstance(output, list) and len(output) == 1 else output
    call = f"{name}({', '.join(map(repr, arguments))})"
    return _literal_call(_tree(f"assert {call} == {expected!r}").body[0])


def _prompt(text: str, name: str | None, tests: list[Test]) -> Prompt:
    if not tests:
        raise _UnusableError("without a test of the form f(literals) == literal")
    hidden = tests[VISIBLE : VISIBLE + MAX_HIDDEN] or tests
    columns = {"name": name, "tests": tests[:VISIBLE], "hidden_tests": hidden}
    return Prompt(({"role": "user", "content": text},), columns)


def _tests(calls: Sequence[Call | None], called: str, name: str) -> list[Test]:
    """The calls of `called` as tests of `name`."""
    return [
        {"call": f"{name}{call[1]}", "expect": call[2]}
        for call in calls
        if call and call[0] == called
    ]


def _literal_call(node: ast.stmt) -> Call | None:
    """Read `assert f(literals) == literal`, in either order; None for any other form."""
    match node:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            call, expected = (left, right) if isinstance(left, ast.Call) else (right, left)
        case _:
            return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    values = [expected, *call.args, *(keyword.value for keyword in call.keywords)]
    if not all(map(_is_literal, values)) or not all(keyword.arg for keyword in call.keywords):
        return None
    return call.func.id, ast.unparse(call).removeprefix(call.func.id), ast.unparse(expected)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _tree(program: str) -> ast.Module:
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _UnusableError("with tests that do not parse") from None
