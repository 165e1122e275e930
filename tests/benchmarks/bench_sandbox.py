"""Test runs a second in the sandbox: `python tests/benchmarks/bench_sandbox.py [seconds]`.

A test run is one program with its tests, in a process of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rftkit.sandbox import Sandbox
from rftkit.sandbox.pool import usable_cores

PROGRAM = """
def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
"""
TESTS = [{"call": f"fib({n})", "expect": expect} for n, expect in ((0, "0"), (9, "34"), (10, "55"))]
BATCH = 64


def rate(run: Callable[[], int], seconds: float) -> float:
    """Runs a second of `run`, which says how many it made."""
    start, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        runs += run()
    return runs / elapsed


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    cores = usable_cores()
    with Sandbox(cores) as sandbox:
        start = time.perf_counter()
        sandbox.run_tests(PROGRAM, TESTS)
        print(f"first run, with the trial of the layers: {time.perf_counter() - start:.2f} s")
        jobs = [(PROGRAM, TESTS)] * BATCH

        def batch(workers: int) -> int:
            results = sandbox.run_many(jobs, workers=workers)
            assert all(result.passed == len(TESTS) for result in results)
            return len(results)

        def programs() -> int:
            inputs = [("print(int(input()) + 1)", str(i)) for i in range(BATCH)]
            results = sandbox.run_programs(inputs)
            assert all(int(result.stdout) == i + 1 for i, result in enumerate(results))
            return len(results)

        batch(cores)
        for workers in sorted({1, 2, cores}):
            print(
                f"run_many, {workers} at a time: {rate(lambda n=workers: batch(n), seconds):.0f}/s"
            )
        print(f"run_programs, {cores} at a time: {rate(programs, seconds):.0f}/s")


if __name__ == "__main__":
    main()
