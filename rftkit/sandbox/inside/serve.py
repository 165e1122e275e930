"""A worker's main loop: a pristine interpreter that forks one child a program.

The worker itself never reads a program or a result: its child takes both from file descriptors
that the parent sends. So no trace of one program can reach the next. Where the system has no
fork, a worker runs one program and is spent.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from .confine import Confinement
from .folder import empty
from .program import run

# Imported once here, so that no program has to wait for them.
_COMMON = (
    "array bisect builtins collections copy dataclasses datetime decimal enum fractions functools"
    " heapq io itertools json math operator queue random re statistics string textwrap threading"
    " time typing"
).split()


def main() -> None:
    """Serve as `sys.argv[2]` says, which is a launch.Config in JSON."""
    config = json.loads(sys.argv[2])
    sys.argv[:] = ["program"]
    sys.dont_write_bytecode = True
    os.environ.clear()
    for name in _COMMON:
        __import__(name)
    importlib.machinery.PathFinder.find_spec("no_such_module")  # lists each folder of sys.path
    _add_exit()
    confinement = Confinement(Path(config["box"]), bool(config["outer"]))
    if config["fork"]:
        _serve(config, confinement)
    else:
        _once(config, confinement)


def _serve(config: dict[str, Any], confinement: Confinement) -> None:
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    try:
        confinement.enter(config["wanted"], config["without"])
    except OSError as error:
        control.sendall(_frame({"failed": str(error)}))
        return
    control.sendall(_frame({"in_force": confinement.in_force, "absent": confinement.absent}))
    gc.collect()
    gc.freeze()
    alone = "namespaces" in confinement.in_force or config["outer"] == "bubblewrap"
    child = 0
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if command == b"R":
            child = os.fork()
            if child == 0:
                control.close()
                _take(descriptors, confinement, alone)
                return
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            status = _end(child, alone) if child else 0
            empty(confinement.box)
            if not command:  # the parent is gone, or closed this worker
                _leave(confinement.box)
                return
            control.sendall(_frame({"status": status}))


def _take(descriptors: list[int], confinement: Confinement, alone: bool) -> None:
    if not alone:
        os.setsid()
    if sys.platform == "linux":
        from .linux import die_with_parent

        die_with_parent()
    request, results, *rest = descriptors
    with os.fdopen(request, "rb") as file:
        message = json.load(file)
    run(message, results, rest[0] if rest else -1, confinement)


def _once(config: dict[str, Any], confinement: Confinement) -> None:
    results, output = os.dup(1), os.dup(2)
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    confinement.enter(config["wanted"], config["without"])
    hello = {"in_force": confinement.in_force, "absent": confinement.absent}
    os.write(results, json.dumps(hello).encode() + b"\n")
    message = json.loads(sys.stdin.buffer.read())
    run(message, results, output if message["calls"] is None else -1, confinement)


def _end(child: int, alone: bool) -> int:
    """Kill the program and all that it started; exit code of the program, or minus its signal.

    `alone`: this is process 1 of its own namespace, so one call reaches them all.
    """
    status, first = 0, [child, -child]
    while True:
        for victim in [-1] if alone and os.getpid() == 1 else [*first, *_orphans()]:
            _kill(victim)
        try:
            ended, code = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if ended == child:
            status, first = os.waitstatus_to_exitcode(code), []


def _orphans() -> list[int]:
    # Those whose parent has ended come to this process: see adopt_orphans.
    listing = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(number) for number in listing.read_text().split()] if listing.exists() else []


def _leave(box: Path) -> None:
    os.chdir("/")
    with contextlib.suppress(OSError):  # a mount point stays; its parent process removes it
        box.rmdir()


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)


def _frame(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def _add_exit() -> None:
    # `-S` leaves these out, and programs use them.
    import builtins
    from _sitebuiltins import Quitter

    for name in ("exit", "quit"):
        setattr(builtins, name, Quitter(name, ""))
