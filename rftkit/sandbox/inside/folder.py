"""Empties a folder that hostile code filled."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def empty(folder: Path) -> None:
    """Delete all that lies in `folder`, which stays.

    A subfolder's contents move up before it goes, so neither depth nor path length matters.
    Permissions that a program took away are given back first.
    """
    folder.chmod(0o700)
    while entries := list(folder.iterdir()):
        for entry in entries:
            if _is_folder(entry):
                for inner in entry.iterdir():
                    if _is_folder(inner):
                        inner.rename(folder / secrets.token_hex(16))
                    else:
                        _unlink(inner)
                entry.rmdir()
            else:
                _unlink(entry)


def _unlink(path: Path) -> None:
    if os.name == "nt":  # where a read-only file cannot be deleted
        path.chmod(0o600)
    path.unlink()


def _is_folder(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    path.chmod(0o700)
    return True
