"""How a worker's interpreter is started, and under which outer layer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from inside.serve import main; del sys.path[0];"
    "main()"
)
_SEATBELT = """(version 1)
(allow default)
(deny network*)
(deny file-write*)
(allow file-write* (subpath "{box}") (literal "/dev/null"))
(deny file-read* (subpath "/Users") (subpath "/Volumes") (subpath "/private/tmp")
  (subpath "/private/var/folders"))
(allow file-read* (subpath "{box}") (subpath "{python}") (subpath "{here}"))
(deny process-exec*)
(allow process-exec (literal "{interpreter}") (subpath "{python}"))
"""


@dataclass(frozen=True)
class Config:
    """What a worker is told. `wanted` None: try each layer but those in `without`.

    outer: "", "bubblewrap" or "seatbelt". fork: one child a program, else one program a worker.
    """

    fork: bool
    outer: str
    wanted: tuple[str, ...] | None
    without: tuple[str, ...]


def outer_layers() -> list[str]:
    """Programs of this system that can confine another one."""
    found = {"bubblewrap": "bwrap", "seatbelt": "sandbox-exec"}
    return [layer for layer, program in found.items() if shutil.which(program)]


def start(
    config: Config, box: Path, stdin: int, stdout: int = subprocess.DEVNULL, stderr: int = -3
) -> subprocess.Popen[bytes]:
    """Start a worker with an empty environment, in a session of its own, in the folder `box`."""
    # Not a virtual environment's own launcher, which on Windows starts another process.
    interpreter = getattr(sys, "_base_executable", "") or sys.executable
    told = json.dumps({**asdict(config), "box": str(box)})
    command = [interpreter, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(_HERE), told]
    return subprocess.Popen(
        [*_prefix(config.outer, box, interpreter), *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=box,
        env={"SYSTEMROOT": os.environ.get("SYSTEMROOT", "")} if os.name == "nt" else {},
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _prefix(outer: str, box: Path, interpreter: str) -> Sequence[str]:
    if outer == "bubblewrap":
        return _bubblewrap(box)
    if outer == "seatbelt":
        profile = _SEATBELT.format(
            box=box, python=os.path.realpath(sys.base_prefix), here=_HERE, interpreter=interpreter
        )
        return [_program("sandbox-exec"), "-p", profile]
    return []


def _program(name: str) -> str:
    """Its absolute path: the worker's empty environment has no PATH to search."""
    return shutil.which(name) or name


def _bubblewrap(box: Path) -> list[str]:
    # Process 1 of all new namespaces, in a file tree of system libraries and Python only.
    prefix = [_program("bwrap"), "--unshare-all", "--as-pid-1", "--cap-drop", "ALL"]
    prefix += ["--dev", "/dev"]
    python = (sys.base_prefix, sys.base_exec_prefix)
    for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", *python):
        prefix += ["--ro-bind-try", path, path]
    library = Path(os.__file__).parent
    for packages in library.glob("*-packages"):
        prefix += ["--tmpfs", str(packages)]
    prefix += ["--ro-bind", str(_HERE / "inside"), str(_HERE / "inside")]
    prefix += ["--remount-ro", "/dev", "--tmpfs", str(box), "--remount-ro", "/"]
    return [*prefix, "--chdir", str(box), "--"]
