"""What the parent alone knows and does: tests are read, expected values kept, results judged."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.errors import UserError
from rftkit.sandbox.inside.encode import encode
from rftkit.sandbox.worker import MAX_OUTPUT, MAX_RESULTS, Outcome

_MAX_ERROR = 300  # characters


@dataclass(frozen=True)
class Result:
    """How many of the tests passed. error: what kept the program or a call from returning."""

    passed: int
    total: int
    error: str | None


@dataclass(frozen=True)
class ProgramResult:
    """What a whole program printed (at most 64 kB). error: why it did not end well."""

    stdout: str
    error: str | None


@dataclass(frozen=True)
class Tests:
    """Calls for the child; the canonical texts of their expected values stay with the parent."""

    calls: list[str]
    expected: list[str]


def read_tests(tests: Sequence[dict[str, Any]], place: str = "") -> Tests:
    """Check `[{"call": "f(1)", "expect": "2"}, …]`.

    Raises UserError that names the index of the first broken test, after `place`.
    """
    if not isinstance(tests, list | tuple):
        raise UserError(f"{place}tests must be a list of objects with 'call' and 'expect'")
    calls, expected = [], []
    for index, test in enumerate(tests):
        where = f"{place}tests[{index}]"
        if not isinstance(test, dict):
            raise UserError(f"{where} must be an object with 'call' and 'expect'")
        for name in ("call", "expect"):
            if not isinstance(test.get(name), str) or not test[name].strip():
                raise UserError(f"{where} needs a non-empty string field '{name}'")
        calls.append(_call(test["call"].strip(), where))
        expected.append(_expect(test["expect"].strip(), where))
    return Tests(calls, expected)


def judge(tests: Tests, outcome: Outcome, timeout: float) -> tuple[list[bool], str | None]:
    """Which tests passed, and the first error. Only a returned value can pass."""
    passed: list[bool] = []
    error, failed, total = None, None, len(tests.expected)
    complete = False
    for line in outcome.results.split(b"\n")[:-1]:  # what follows the last newline is broken off
        message = _message(line)
        if "failed" in message:
            failed = _text(message["failed"])
        elif "value" in message and len(passed) < total:
            passed.append(message["value"] == tests.expected[len(passed)])
        elif "error" in message and len(passed) < total:
            error = error or f"tests[{len(passed)}]: {_text(message['error'])}"
            passed.append(False)
        complete = len(passed) == total and (total > 0 or "done" in message)
        if complete or failed:
            break
    if not complete:
        error = failed or _reason(outcome, timeout) or "it ended before its tests did"
    return passed + [False] * (total - len(passed)), error


def program_result(outcome: Outcome, timeout: float) -> ProgramResult:
    """What a whole program printed and whether it came to its end."""
    stdout = outcome.output[:MAX_OUTPUT].decode("utf-8", "replace").replace("\r\n", "\n")
    messages = [_message(line) for line in outcome.results.split(b"\n")[:-1]]
    failed = next((_text(m["failed"]) for m in messages if "failed" in m), None)
    return ProgramResult(stdout, failed or _reason(outcome, timeout))


def _call(call: str, where: str) -> str:
    try:
        ast.parse(call, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError(f"{where}: 'call' is not a Python expression: {call[:80]!r}") from None
    return call


def _expect(expect: str, where: str) -> str:
    try:
        return encode(ast.literal_eval(expect))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        problem = f"'expect' is not a Python literal (write its repr): {expect[:80]!r}"
        raise UserError(f"{where}: {problem}") from None


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _text(message: object) -> str:
    # Hostile: any JSON value, any length, any characters.
    text = message if isinstance(message, str) else "an error"
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_ERROR])


def _reason(outcome: Outcome, timeout: float) -> str | None:
    cpu_limit = -24  # SIGXCPU
    if outcome.stopped == "timeout" or outcome.status == cpu_limit:
        return f"it ran longer than {timeout:g} s"
    if outcome.stopped == "flood":
        return f"it put out more than {MAX_OUTPUT >> 10} kB, or {MAX_RESULTS >> 10} kB of results"
    if outcome.stopped == "lost":
        return "its sandbox worker was lost"
    if outcome.status < 0:
        return f"it was killed by signal {-outcome.status}"
    return f"it ended with exit code {outcome.status}" if outcome.status else None
