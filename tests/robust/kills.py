"""Training in forked children that die by SIGKILL at a chosen point, found by counting calls.

A first child records the phase of every function call of ours and of every call that changes files;
another one kills itself at the n-th. So each kill is real, cheap, and can be repeated.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parents[2] / "rftkit")
FILE_CALLS = {"open", "write", "fsync", "rename", "replace", "rmdir", "unlink", "mkdir", "truncate"}
PHASES = {  # the function of ours that begins it
    "evaluate": "evaluation",
    "_collect": "rollout",
    "prepare": "refine",
    "_update": "update",
    "save": "save",
    "replace_folder": "save",
    "append_line": "record",
    "cut": "resume",
    "create": "set-up",
}


def in_child(work: Callable[[], object], profile: Callable[..., None] | None = None) -> int:
    """Run `work` in a forked child; its exit status, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            sys.setprofile(profile)
            work()
            sys.setprofile(None)
            os._exit(0)
        except BaseException:
            sys.setprofile(None)
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_points(work: Callable[[], object], notes: Path, per_phase: int, seed: int) -> list[int]:
    """Numbers of calls, `per_phase` drawn from each phase that `work` went through."""
    phases: list[str] = []

    def tell() -> None:
        work()
        sys.setprofile(None)
        notes.write_text(json.dumps(phases))

    assert in_child(tell, _counting(lambda phase: phases.append(phase))) == 0
    points = json.loads(notes.read_text())
    rng = random.Random(seed)
    drawn = []
    for phase in sorted(set(points)):
        numbers = [n for n, p in enumerate(points) if p == phase]
        drawn += rng.sample(numbers, min(per_phase, len(numbers)))
    return drawn


def killed_at(point: int) -> Callable[..., None]:
    """A profile function that kills the process at call number `point`."""
    left = [point]

    def count(phase: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    return _counting(count)


def _counting(count: Callable[[str], None]) -> Callable[..., None]:
    phase = "set-up"

    def profile(frame, event: str, called) -> None:
        nonlocal phase
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            phase = PHASES.get(code.co_name, phase)
            count(phase)
        elif event == "c_call" and called.__name__ in FILE_CALLS:
            count(phase)

    return profile
