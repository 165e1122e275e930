"""What protects a run from its surroundings: a stop in mid-step, and a second writer."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rftkit.errors import UserError
from rftkit.files import writing

log = logging.getLogger("rftkit")


@dataclass
class Stop:
    """Whether somebody asked to stop."""

    requested: bool = False


@contextmanager
def whole_step() -> Iterator[Stop]:
    """Put off Ctrl-C, a notebook's stop button and SIGTERM to the end of the block.

    The caller looks at `requested` at the end of the block. A second Ctrl-C raises
    KeyboardInterrupt at once. Outside the main thread nothing is put off, for signals do not arrive
    there.
    """
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.requested and number == signal.SIGTERM:
            return  # whoever ends a group of processes may say so more than once
        if stop.requested:
            raise KeyboardInterrupt("stopped in the middle of a step; what was saved stays")
        stop.requested = True
        log.warning("stopping after this step; once more stops at once")

    before = {}
    if threading.current_thread() is threading.main_thread():
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {s: h for s in wanted if (h := signal.getsignal(s)) not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sole_writer(file: Path) -> Iterator[None]:
    """Inside, no other process or trainer may enter with the same existing `file`.

    The lock ends with the process, however it ends. Raises UserError where another one has it.
    """
    with writing(file):
        handle = file.open("rb+")
    with handle:
        if not _lock(handle):
            raise UserError(
                f"{file.parent}: another process is at work in it; wait for it, or stop it"
            )
        yield


def _lock(handle: IO[bytes]) -> bool:
    """Lock an open file for this process alone; False where it is locked already."""
    if sys.platform == "win32":
        import msvcrt

        handle.seek(1 << 30)  # far behind the end: locked bytes cannot be read by others
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
