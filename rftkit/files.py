"""Writing so that a kill, a crash or a full disk leaves the old state or the new one, never half.

Files and folders are filled beside their place, flushed to the disk, and moved in. A failure to
write is one line for the user.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rftkit.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, a failure to write is a UserError that names `path` and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        full = any(os.strerror(n) in reason for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
        remedy = "free some space, then --resume goes on" if full else "choose another --out"
        raise UserError(f"{path}: cannot be written ({reason}); {remedy}") from None


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8", newline="\n"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file, then move it to `path`: no reader sees half of it."""
    new = path.with_name(path.name + ".new")
    with writing(path):
        try:
            write(new)
            _flush(new)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)  # half a file would only fill the disk
            raise


def append_line(path: Path, line: str) -> None:
    """Append one whole line, or nothing."""
    data = (line + "\n").encode()
    with writing(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(data) != len(data):  # the disk filled up within the line
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, then swap it in for `folder`."""
    new, old = _beside(folder, "new"), _beside(folder, "old")
    with writing(folder):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            write(new)
            for path in new.rglob("*"):
                if path.is_file():
                    _flush(path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_folder(folder: Path) -> Path | None:
    """`folder`, or its predecessor if a crash fell between the two renames, or None."""
    return next((path for path in (folder, _beside(folder, "old")) if path.exists()), None)


def _beside(folder: Path, kind: str) -> Path:
    """A hidden sibling of ours: a user's own backup may well be called `folder`.old."""
    return folder.with_name(f".{folder.name}.rftkit-{kind}")


def _flush(path: Path) -> None:
    """Wait until the file is on the disk: a power cut must not leave a name without content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
