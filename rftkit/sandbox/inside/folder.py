"""Empties a folder that hostile code filled."""

from __future__ import annotations

import secrets
from pathlib import Path


def empty(folder: Path) -> None:
    """Delete all that lies in `folder`, which stays.

    A subfolder's contents move up before it goes, so neither depth nor path length matters.
    """
    while entries := list(folder.iterdir()):
        for entry in entries:
            if _is_folder(entry):
                for inner in entry.iterdir():
                    if _is_folder(inner):
                        inner.rename(folder / secrets.token_hex(16))
                    else:
                        inner.unlink()
                entry.rmdir()
            else:
                entry.unlink()


def _is_folder(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    path.chmod(0o700)
    return True
