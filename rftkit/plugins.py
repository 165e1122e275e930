"""Functions of the user's own, named on the command line as MODULE:FUNCTION."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from rftkit.errors import UserError


def load_function(field: str, name: str, example: str) -> Callable[..., Any]:
    """The function that `name` (module:function) names; the current folder is looked in, too.

    Raises UserError, which begins with `field`, where there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"{field}: {name!r} must be module:function, such as {example}")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(import_module(module), function, None)
    except (Exception, SystemExit) as error:  # a script without a main guard ends itself
        raise UserError(
            f"{field}: module {module!r} cannot be imported ({in_a_line(error)})"
        ) from None
    if not callable(found):
        raise UserError(f"{field}: module {module!r} has no function {function!r}")
    loaded: Callable[..., Any] = found
    return loaded


def in_a_line(error: BaseException) -> str:
    """An error's kind and text, whatever it holds."""
    try:
        text = f": {error}"
    except Exception:  # an error that cannot be printed
        text = ""
    return " ".join(f"{type(error).__name__}{text}".split())
