"""Runs model-written Python where it can do no harm, and tells what it returned.

Each program runs in a process of its own, forked from a pristine `python -I` (Windows: in a
`python -I` of its own) that reads no environment. It has a temp folder, an empty standard input,
limits on time, memory and output, and the layers that work on this machine; at its end its whole
process tree is killed and the folder emptied.

The program shares that process with the code that evaluates the calls, so it can forge whatever
is reported from there. Therefore expected values never leave this process, which alone compares,
and neither exit code nor printed text counts: to forge a result is to compute it. One limit: what
a `call` itself compares, it compares among hostile code. Prefer calls that return values.

Linux: rlimits, namespaces (user, process, network, IPC, mount), no_new_privs, Landlock, seccomp;
bubblewrap where namespaces or Landlock are missing. macOS: rlimits, Seatbelt. Windows: a job
object and low integrity, which stop neither reading nor the network. `layers()` tries out what
holds on this machine.
Not covered anywhere: names and sizes of files, CPU use up to the time limit, errors in the kernel.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any

from rftkit.errors import UserError
from rftkit.sandbox.judge import (
    ProgramResult,
    Result,
    Tests,
    judge,
    program_result,
    read_tests,
)
from rftkit.sandbox.pool import Pool
from rftkit.sandbox.probe import survey

__all__ = [
    "ProgramResult",
    "Result",
    "Sandbox",
    "close",
    "layers",
    "run_many",
    "run_program",
    "run_programs",
    "run_tests",
]

TIMEOUT = 2.0  # seconds of wall-clock time for a program with all its calls
MAX_TIMEOUT = 3600.0
MAX_CODE = 1 << 20  # characters
MAX_STDIN = 8 << 20  # characters

Job = tuple[str, Sequence[dict[str, Any]]]


class Sandbox:
    """A pool of warm workers and what they can run. A context manager; `close()` ends them.

    The functions of this module share one sandbox, closed at exit. Pool explains the arguments.
    """

    def __init__(
        self,
        workers: int | None = None,
        without: Sequence[str] = (),
        fork: bool = hasattr(os, "fork"),
    ):
        self._pool = Pool(workers, without, fork)
        self._layers: dict[str, Any] | None = None

    def run_tests(
        self, code: str, tests: Sequence[dict[str, Any]], timeout: float = TIMEOUT
    ) -> Result:
        """See `rftkit.sandbox.run_tests`."""
        return self.run_many([(code, tests)], timeout)[0]

    def run_many(
        self, jobs: Sequence[Job], timeout: float = TIMEOUT, workers: int | None = None
    ) -> list[Result]:
        """See `rftkit.sandbox.run_many`."""
        _check_timeout(timeout)
        many = len(jobs) > 1
        read = [
            (_code(code), read_tests(tests, f"jobs[{index}]: " if many else ""))
            for index, (code, tests) in enumerate(jobs)
        ]

        def run(job: tuple[str, Tests]) -> Result:
            code, tests = job
            if len(code) > MAX_CODE:
                return Result(0, len(tests.calls), _TOO_LONG)
            outcome = self._pool.run(_request(code, tests.calls, "", timeout), timeout)
            passed, error = judge(tests, outcome, timeout)
            return Result(sum(passed), len(passed), error)

        return self._pool.map(run, read, workers)

    def run_program(self, code: str, stdin: str = "", timeout: float = TIMEOUT) -> ProgramResult:
        """See `rftkit.sandbox.run_program`."""
        return self.run_programs([(code, stdin)], timeout)[0]

    def run_programs(
        self, jobs: Sequence[tuple[str, str]], timeout: float = TIMEOUT, workers: int | None = None
    ) -> list[ProgramResult]:
        """See `rftkit.sandbox.run_programs`."""
        _check_timeout(timeout)
        for _, stdin in jobs:
            if len(stdin) > MAX_STDIN:
                raise UserError(f"stdin has {len(stdin)} characters; at most {MAX_STDIN} fit")

        def run(job: tuple[str, str]) -> ProgramResult:
            code, stdin = _code(job[0]), job[1]
            if len(code) > MAX_CODE:
                return ProgramResult("", _TOO_LONG)
            outcome = self._pool.run(_request(code, None, stdin, timeout), timeout)
            return program_result(outcome, timeout)

        return self._pool.map(run, jobs, workers)

    def layers(self) -> dict[str, Any]:
        """See `rftkit.sandbox.layers`."""
        if self._layers is None:
            self._layers = survey(self._pool)
        return self._layers

    def close(self) -> None:
        """End all workers; a later call starts new ones."""
        self._pool.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run_tests(code: str, tests: Sequence[dict[str, Any]], timeout: float = TIMEOUT) -> Result:
    """Run `code`, then evaluate each test's call in its namespace, all within `timeout` seconds.

    tests: `[{"call": "f(1, 2)", "expect": "3"}, …]`, expectations being Python literals. A test
    passes where the returned value equals the literal in value and type: `1` is neither `True`
    nor `1.0`, and an instance of a subclass is never equal.
    Raises UserError that names the index of a test without call or with another expectation, and
    rftkit.sandbox.worker.WorkerError where no worker starts.
    """
    return _SHARED.run_tests(code, tests, timeout)


def run_many(
    jobs: Sequence[Job], timeout: float = TIMEOUT, workers: int | None = None
) -> list[Result]:
    """`run_tests` of each `(code, tests)`, in order, `workers` at a time (default: each core).

    timeout: seconds for each program. Raises UserError as `run_tests` does, before any runs.
    """
    return _SHARED.run_many(jobs, timeout, workers)


def run_program(code: str, stdin: str = "", timeout: float = TIMEOUT) -> ProgramResult:
    """Run a whole program as `__main__` with `stdin` as its input; what it printed, and any error.

    What it prints beyond 64 kB is cut off and counts as an error. `sys.exit()` is none.
    """
    return _SHARED.run_program(code, stdin, timeout)


def run_programs(
    jobs: Sequence[tuple[str, str]], timeout: float = TIMEOUT, workers: int | None = None
) -> list[ProgramResult]:
    """`run_program` of each `(code, stdin)`, in order, `workers` at a time."""
    return _SHARED.run_programs(jobs, timeout, workers)


def layers() -> dict[str, Any]:
    """What protects this machine, found by trying; ready for JSON.

    in_force: names of the layers. absent: the others, with the reason. stopped: harm → whether a
    program that tried it just now failed. not_covered: what nothing here stops.
    """
    return _SHARED.layers()


def close() -> None:
    """End the shared sandbox's workers, as exit does; a later call starts new ones."""
    _SHARED.close()


_TOO_LONG = f"the program is longer than {MAX_CODE} characters"
_SHARED = Sandbox()  # starts its first worker when it is first used
atexit.register(close)


def _request(code: str, calls: list[str] | None, stdin: str, timeout: float) -> dict[str, Any]:
    return {"code": code, "calls": calls, "stdin": stdin, "timeout": timeout}


def _code(code: str) -> str:
    if not isinstance(code, str):
        raise UserError(f"code must be a string, not {type(code).__name__}")
    return code


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= MAX_TIMEOUT:
        raise UserError(f"timeout must be over 0 and at most {MAX_TIMEOUT} seconds, not {timeout}")
