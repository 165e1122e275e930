"""What a command has to say: one JSON object for a program, or text for a reader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """Both forms of a command's result, and its exit status."""

    found: dict[str, Any]
    text: str
    status: int = 0


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Inside, what anybody prints goes to stderr: a user's function, and worker processes too.

    Stdout is left to the one JSON object that comes after.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
