"""What programs may do in the sandbox, and how workers come and go."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from rftkit import sandbox

ADD = "def f(a, b): return a + b"
SLOW = 20.0  # seconds for a program that is quick unless this machine is very busy


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    sandbox.close()


def test_a_program_reads_stdin_and_prints():
    code = """
        import sys
        n = int(input())
        if __name__ == "__main__":
            print(sum(map(int, sys.stdin.read().split()[:n])), "é", sep="\\n")
            exit()
    """
    result = sandbox.run_program(textwrap.dedent(code), "3\n1 2 3\n")
    assert result == sandbox.ProgramResult("6\né\n", None)
    assert sandbox.run_programs([("print(input())", str(i)) for i in range(6)]) == [
        sandbox.ProgramResult(f"{i}\n", None) for i in range(6)
    ]


@pytest.mark.parametrize(
    ("code", "stdout", "error"),
    [
        ("print(1)\nraise ValueError('no')", "1\n", "ValueError: no"),
        ("print(1)\nimport sys; sys.exit(0)", "1\n", None),
        ("print(1)\nimport sys; sys.exit('bad')", "1\n", "SystemExit: bad"),
        ("print(1, flush=True)\nimport os; os._exit(0)", "1\n", None),
        ("print(1, flush=True)\nimport os; os._exit(3)", "1\n", "it ended with exit code 3"),
        ("print(1, flush=True)\nwhile True: pass", "1\n", "it ran longer than 1.5 s"),
        ("input()", "", "EOFError: EOF when reading a line"),
        ("import os; os.write(1, b'\\xff')", "\ufffd", None),
        ("import atexit; atexit.register(print, 'bye')", "bye\n", None),
        ("import os; print(sorted(os.environ))", "[]\n", None),
    ],
)
def test_how_a_program_ends(code, stdout, error):
    assert sandbox.run_program(code, timeout=1.5) == sandbox.ProgramResult(stdout, error)


def test_printed_text_is_cut_off():
    result = sandbox.run_program("while True: print('x' * 99)", timeout=5)
    assert len(result.stdout) == 64 << 10
    assert "more than 64 kB" in result.error


def test_a_deep_recursion_in_a_thread_with_a_large_stack_works():
    code = """
        import sys, threading
        sys.setrecursionlimit(10 ** 6)
        threading.stack_size(64 << 20)
        def depth(n): return n and 1 + depth(n - 1)
        threading.Thread(target=lambda: print(depth(20000))).start()
    """
    result = sandbox.run_program(textwrap.dedent(code), timeout=10)
    assert result == sandbox.ProgramResult("20000\n", None)


ORDINARY = {
    "temp file": "open('a', 'w').write('x'); value = open('a').read() == 'x'",
    "temp folder": "import tempfile, os; value = os.listdir(tempfile.mkdtemp()) == []",
    "rename": """
        import os
        open('a', 'w').close()
        os.rename('a', 'b')
        value = os.listdir() == ['b']""",
    "threads": """
        import concurrent.futures as c
        with c.ThreadPoolExecutor(4) as pool: value = list(pool.map(abs, [-1])) == [1]""",
    "asyncio": """
        import asyncio
        async def main(): await asyncio.sleep(0.01); return True
        value = asyncio.run(main())""",
    "alarm": """
        import signal
        signal.signal(signal.SIGALRM, lambda *a: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        value = signal.pause() is None""",
    "dataclass": """
        from dataclasses import dataclass
        @dataclass
        class Point:
            x: 'int'
        value = Point(1) == Point(1)""",
    "pickle": """
        import pickle
        class Thing: pass
        value = type(pickle.loads(pickle.dumps(Thing()))) is Thing""",
    "database": """
        import sqlite3
        base = sqlite3.connect('db')
        base.execute('create table t (x)')
        value = base.execute('select count(*) from t').fetchall() == [(0,)]""",
    "hash": "import hashlib; value = len(hashlib.sha256(b'x').digest()) == 32",
    "numbers": "import decimal, fractions, random, statistics; value = random.random() < 1",
    "times": "import datetime, zoneinfo; value = datetime.datetime.now().year > 2000",
    "dates by zone": "import time; value = time.localtime().tm_year > 2000",
    "text": "import csv, difflib, html, json, re, string, textwrap, unicodedata; value = True",
    "nothing installed": """
        try:
            import pytest
        except ImportError:
            value = True""",
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs_work(name):
    if name == "alarm" and os.name == "nt":
        pytest.skip("Windows has no alarms")
    tests = [{"call": "value", "expect": "True"}]
    assert sandbox.run_tests(textwrap.dedent(ORDINARY[name]), tests, SLOW) == sandbox.Result(
        1, 1, None
    )


def test_no_program_sees_what_another_left():
    leave = "import builtins, os\nbuiltins.left = 1\nos.mkdir('x')\nopen('left', 'w').close()"
    look = "import builtins, os"
    calls = [{"call": "(hasattr(builtins, 'left'), os.listdir())", "expect": "(False, [])"}]
    with sandbox.Sandbox(workers=1) as one:
        for _ in range(3):
            assert one.run_tests(leave, []).error is None
            assert one.run_tests(look, calls).passed == 1


def test_a_worker_that_dies_is_replaced():
    with sandbox.Sandbox(workers=1) as one:
        tests = [{"call": "f(1, 2)", "expect": "3"}]
        assert one.run_tests(ADD, tests).passed == 1
        workers = [p for p in psutil.Process().children(True) if "-c" in p.cmdline()]
        for process in workers:
            process.kill()
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers):
            time.sleep(0.01)
        assert one.run_tests(ADD, tests).passed == 1


SCRIPT = """
from rftkit import sandbox
result = sandbox.run_many([("x = 1", [{"call": "x", "expect": "1"}])] * 4, workers=2)
print(sum(r.passed for r in result), flush=True)
"""


@pytest.mark.parametrize("how", ["it ends", "it is killed"])
def test_nothing_is_left_when_the_caller(how, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    code = SCRIPT if how == "it ends" else SCRIPT + "sandbox.run_tests('while True: pass', [], 60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    ) as caller:
        assert caller.stdout.readline() == b"4\n"
        if how == "it is killed":
            time.sleep(0.2)
            caller.kill()
    deadline = time.monotonic() + 10
    while (running := workers_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running
    assert not list(tmp_path.iterdir())


def workers_in(folder) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or ())
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_copy_of_the_caller_uses_workers_of_its_own():
    tests = [{"call": "f(1, 2)", "expect": "3"}]
    assert sandbox.run_tests(ADD, tests).passed == 1
    child = os.fork()
    if child == 0:
        passed = sandbox.run_tests(ADD, tests).passed
        sandbox.close()
        os._exit(passed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert sandbox.run_tests(ADD, tests).passed == 1


def test_threads_share_a_sandbox():
    passed = []

    def work() -> None:
        tests = [{"call": "f(1, 2)", "expect": "3"}]
        passed.append(sandbox.run_tests(ADD, tests).passed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == [1] * 4
