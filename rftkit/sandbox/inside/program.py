"""Runs one program in the process that is spent on it, and says what its calls returned.

Everything here shares the process with hostile code, which may change all of it. So it knows
no expected value and gives no verdict: whatever it says is data to the parent.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from .confine import Confinement
from .encode import encode


def run(request: dict[str, Any], results: int, output: int, confinement: Confinement) -> None:
    """Run `request["code"]`, then each of `request["calls"]`; None: run it as a whole program.

    Writes lines of JSON to the file descriptor `results`: {"value": text} or {"error": text} a
    call, {"failed": text} where the program itself fails, {"done": true} where it ends.
    `output` becomes its standard output. Returns only after a whole program, whose threads and
    exit handlers the interpreter then ends in its usual way.
    """
    _connect(request["stdin"], output, confinement.box)
    confinement.lock(request["timeout"])
    if sys.platform != "win32":
        os.closerange(3, results)
        os.closerange(results + 1, 1 << 16)
    calls = request["calls"]
    module = ModuleType("__main__" if calls is None else "solution")
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(compile(request["code"], "<program>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        if calls is None and isinstance(error, SystemExit) and not error.code:
            _say(results, done=True)
        else:
            _say(results, failed=_describe(error))
    else:
        for call in calls or ():
            _evaluate(call, module, results)
        _say(results, done=True)
    if calls is not None:
        os._exit(0)


def _evaluate(call: str, module: ModuleType, results: int) -> None:
    try:
        value = eval(compile(call, "<call>", "eval", dont_inherit=True), module.__dict__)
        _say(results, value=encode(value))
    except BaseException as error:
        _say(results, error=_describe(error))


def _connect(text: str, output: int, box: Path) -> None:
    with tempfile.TemporaryFile(dir=box) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.seek(0)
        os.dup2(file.fileno(), 0)
    if output >= 0:
        os.dup2(output, 1)


def _say(results: int, **message: object) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(results, data) :]


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an exception that cannot be shown"
