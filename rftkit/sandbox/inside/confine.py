"""The layers: what a worker puts on when it starts, and what each program gets on top.

A layer that a trial finds refused is left out and reported. One that was in force and then
fails stops the worker or the program: never less than was reported.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

if os.name == "posix":
    import resource

MEMORY = 256 << 20  # bytes of address space
FILE_SIZE = 16 << 20  # bytes
OPEN_FILES = 64


class Confinement:
    """The layers of one worker. `absent` maps a layer to the reason why it is not in force.

    writes_confined: something other than seccomp keeps file changes inside `box`.
    """

    def __init__(self, box: Path, writes_confined: bool):
        self.box = box
        self.writes_confined = writes_confined
        self.in_force: list[str] = []
        self.absent: dict[str, str] = {}
        self._layers: list[Layer] = []

    def enter(self, wanted: list[str] | None, without: list[str]) -> None:
        """Put on the worker's part of each layer in `wanted`; None: of each that a trial passes.

        `without` names layers to leave out. Raises OSError where a layer of `wanted` fails.
        """
        for kind in _kinds():
            layer, name = kind(self), kind.name
            if wanted is None:
                reason = "switched off" if name in without else layer.trial()
                if reason:
                    self.absent[name] = reason
                    continue
            elif name not in wanted:
                continue
            layer.enter()
            self._layers.append(layer)
            self.in_force.append(name)
        if sys.platform == "linux":
            from . import linux

            linux.adopt_orphans()
        os.chdir(self.box)

    def lock(self, timeout: float) -> None:
        """Put on the program's part of each layer, for good, in the program's own process."""
        for layer in self._layers:
            layer.lock(timeout)


class Layer:
    """One layer: `enter` in the worker, then `lock` in each process that runs a program."""

    name = ""

    def __init__(self, confinement: Confinement):
        self.confinement = confinement
        self.on_trial = False

    def trial(self) -> str:
        """Try it in a process that is thrown away: "" where it works, else the reason."""

        def attempt() -> None:
            self.on_trial = True
            self.enter()
            self.lock(1)

        return _reason(attempt)

    def enter(self) -> None:
        """Raises OSError where the system refuses."""

    def lock(self, timeout: float) -> None:
        """Raises OSError where the system refuses."""


class Rlimits(Layer):
    """Memory, CPU seconds, file size, open files; no processes, where that is enforced."""

    name = "rlimits"

    def lock(self, timeout: float) -> None:
        seconds = math.ceil(timeout)
        _limit("CPU", seconds, seconds + 1)
        _limit("AS", MEMORY)
        _limit("FSIZE", FILE_SIZE)
        _limit("NOFILE", OPEN_FILES)
        _limit("CORE", 0)
        _limit("MEMLOCK", 0)
        _limit("MSGQUEUE", 0)
        if "seccomp" not in self.confinement.in_force:
            _limit("NPROC", 0)  # on Linux no threads either, and not enforced for root


class Namespaces(Layer):
    """No network device, no foreign process in sight, and all processes die with the first."""

    name = "namespaces"

    def enter(self) -> None:
        from . import linux

        linux.enter_namespaces(self.confinement.box, remove=not self.on_trial)


class NoNewPrivileges(Layer):
    """No capabilities and no way to gain any; needed by the two that follow."""

    name = "no_new_privs"

    def enter(self) -> None:
        from . import linux

        linux.drop_privileges()


class Landlock(Layer):
    """Reads Python's library only, changes files in the temp folder only."""

    name = "landlock"

    def enter(self) -> None:
        from . import linux

        self.ruleset = linux.landlock_ruleset(self.confinement.box)
        self.confinement.writes_confined = True

    def lock(self, timeout: float) -> None:
        from . import linux

        linux.landlock_restrict(self.ruleset)


class Seccomp(Layer):
    """No system call but those on a list. Without another layer: no file changes at all."""

    name = "seccomp"

    def enter(self) -> None:
        from . import seccomp

        self.program = seccomp.filter_program(seccomp.machine(), self.confinement.writes_confined)

    def lock(self, timeout: float) -> None:
        from . import seccomp

        seccomp.install(self.program)


class LowIntegrity(Layer):
    """Windows: no changes to files and processes of the ordinary integrity level."""

    name = "low integrity"
    _lowered = False

    def trial(self) -> str:
        try:
            self.enter()  # on this process: Windows has no fork, and nothing is lost
        except OSError as error:
            return str(error)
        return ""

    def enter(self) -> None:
        from . import windows

        if not self._lowered:
            windows.lower_integrity(self.confinement.box)
            self._lowered = True


def _kinds() -> list[type[Layer]]:
    kinds: list[type[Layer]] = [Rlimits] if os.name == "posix" else [LowIntegrity]
    if sys.platform == "linux":
        kinds += [Namespaces, NoNewPrivileges, Landlock, Seccomp]
    return kinds


def _reason(attempt: Callable[[], None]) -> str:
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            attempt()
            os.write(send, b"works")
        except BaseException as error:
            os.write(send, (str(error) or type(error).__name__).encode()[:300])
        finally:
            os._exit(0)
    os.close(send)
    os.waitpid(child, 0)
    answer = os.read(receive, 300).decode(errors="replace")
    os.close(receive)
    return "" if answer == "works" else answer or "the trial died"


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is None:
        return
    ceiling = resource.getrlimit(number)[1]
    if ceiling == resource.RLIM_INFINITY:
        ceiling = sys.maxsize
    hard = min(soft if hard is None else hard, ceiling)
    try:
        resource.setrlimit(number, (min(soft, hard), hard))
    except (OSError, ValueError):
        if sys.platform == "linux":  # macOS refuses some of them: layers() finds out which
            raise
