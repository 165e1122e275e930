"""Finds out by experiment what the sandbox stops on this machine.

No layer's word is taken: a small hostile program tries each harm, and the parent looks whether
it came about.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit.sandbox.inside.confine import FILE_SIZE, MEMORY
from rftkit.sandbox.judge import judge, read_tests
from rftkit.sandbox.pool import Pool

_SECONDS = 5.0
_ALWAYS_OPEN = (
    "names, sizes and dates of files (their contents are another matter)",
    "CPU use up to the time limit, and what timing and caches tell",
    "errors of the kernel itself: for code that is out to break it, use a virtual machine",
)


def survey(pool: Pool) -> dict[str, Any]:
    """See `rftkit.sandbox.layers`."""
    pool.start()
    stopped = {harm: not attempt(pool) for harm, attempt in _HARMS.items()}
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "in_force": list(pool.in_force),
        "absent": dict(pool.absent),
        "stopped": stopped,
        "not_covered": [h for h, safe in stopped.items() if not safe] + list(_ALWAYS_OPEN),
    }


def _yields(pool: Pool, code: str, expect: object) -> bool:
    tests = read_tests([{"call": "harm()", "expect": repr(expect)}])
    request = {"code": code, "calls": tests.calls, "stdin": "", "timeout": _SECONDS}
    return judge(tests, pool.run(request, _SECONDS), _SECONDS)[0][0]


def _reads(pool: Pool) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder, "secret")
        secret.write_text("a secret", encoding="utf-8")
        return _yields(pool, f"def harm(): return open({str(secret)!r}).read()", "a secret")


def _writes(pool: Pool) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        old.touch(mode=0o600)
        _yields(pool, f"def harm(): open({str(new)!r}, 'w').close()", None)
        _yields(pool, f"import os\ndef harm(): os.chmod({str(old)!r}, 0o444)", None)
        return new.exists() or old.stat().st_mode & 0o777 == 0o444


def _connects(pool: Pool) -> bool:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))]
        if hasattr(socket, "AF_UNIX"):
            servers.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            servers[1].bind(f"{folder}/s")
            servers[1].listen()
        for server in servers:
            code = f"s = socket.socket({int(server.family)})\n s.connect({server.getsockname()!r})"
            _yields(pool, f"import socket\ndef harm():\n {code}", None)
        return any(_was_reached(server) for server in servers)


def _was_reached(server: socket.socket) -> bool:
    server.setblocking(False)
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _starts_processes(pool: Pool) -> bool:
    command = [sys.executable, "-I", "-S", "-c", ""]
    code = f"def harm():\n import subprocess\n return subprocess.run({command!r}).returncode"
    return _yields(pool, code, 0) or _yields(pool, _FORK, True)


_FORK = """
import os
def harm():
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[0] == child
    os._exit(0)
"""


def _signals(pool: Pool) -> bool:
    idle = [sys.executable, "-I", "-S", "-c", "input()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE) as victim:
        _yields(pool, f"def harm():\n import os\n os.kill({victim.pid}, 9)", None)
        try:
            victim.wait(0.1)
        except subprocess.TimeoutExpired:
            return False
        finally:
            victim.kill()
        return True


def _takes_memory(pool: Pool) -> bool:
    return _yields(pool, f"def harm(): return len(bytes({2 * MEMORY})) > 0", True)


def _fills_disk(pool: Pool) -> bool:
    code = f"def harm():\n for i in range(5): open(str(i), 'wb').write(bytes({FILE_SIZE}))"
    return _yields(pool, code, None)


_HARMS: dict[str, Callable[[Pool], bool]] = {
    "reading files outside": _reads,
    "changing files outside": _writes,
    "network": _connects,
    "starting processes": _starts_processes,
    "signals to other processes": _signals,
    f"over {MEMORY >> 20} MB of memory": _takes_memory,
    "filling the disk": _fills_disk,
}
