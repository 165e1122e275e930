"""The tests under other packages: `python tests/benchmarks/versions.py oldest [-k ...]`.

`oldest` takes the lowest version that pyproject.toml allows of each package that it names, `pinned`
those of constraints.txt; `--python` names another interpreter. Each gets an environment of its own
under out/versions, made by uv. A run of all tests is recorded in data/runs/versions.json; any other
argument goes to pytest, and such a part of the tests is not recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "out" / "versions"
RECORD = ROOT / "data" / "runs" / "versions.json"
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
# What runs in the new environment to tell what it holds.
TELL = """
import json, platform
from importlib.metadata import version
from packaging.requirements import Requirement
from importlib.metadata import requires
names = sorted({Requirement(line).name for line in requires("rftkit")})
print(json.dumps({"python": platform.python_version(), "packages": {n: version(n) for n in names}}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packages", choices=("oldest", "pinned"))
    parser.add_argument("--python", default=sys.executable, help="the interpreter to test with")
    arguments, for_pytest = parser.parse_known_args()
    try:
        python = environment(arguments.packages, arguments.python)
    except subprocess.CalledProcessError as error:
        print(f"not tested: {arguments.packages} packages on {arguments.python} cannot be "
              f"installed here\n{error.stderr or ''}", file=sys.stderr)  # fmt: skip
        return 2
    told = subprocess.run([python, "-c", TELL], check=True, capture_output=True, text=True)
    found = {"kind": arguments.packages, **json.loads(told.stdout), **tested(python, for_pytest)}
    print(json.dumps({key: value for key, value in found.items() if key != "packages"}))
    if not for_pytest:
        record(found)
    return found["failed"] > 0 or found["passed"] == 0


def environment(packages: str, python: str) -> Path:
    """Make the environment, or bring it up to date; its interpreter."""
    uv, name = find_uv(), f"{packages}-{Path(python).resolve().parent.parent.name}"
    here, rows = WORK / name, WORK / f"{name}.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [w for extra in project["optional-dependencies"] for w in ("--extra", extra)]
    torch = WORK / "torch.txt"
    # torch as it is here: the same build where there is one for this Python, else with CUDA, in GB
    torch.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    how = ["--resolution", "lowest-direct"] if packages == "oldest" else []
    limits = ["-c", torch, *(["-c", ROOT / "constraints.txt"] if packages == "pinned" else [])]
    source = ["pip", "compile", "-q", "--python", python, *how, *limits, *extras]
    call(uv, *source, ROOT / "pyproject.toml", "-o", rows)
    call(uv, "venv", "-q", "--allow-existing", "--python", python, here)
    mine = here / SCRIPTS / "python"
    call(uv, "pip", "sync", "-q", "--python", mine, rows)
    call(uv, "pip", "install", "-q", "--python", mine, "--no-deps", "--editable", ROOT)
    return mine


def find_uv() -> str:
    """uv from the path, else from an environment of its own."""
    WORK.mkdir(parents=True, exist_ok=True)
    own = WORK / "uv"
    if not (own / SCRIPTS).exists():
        if found := shutil.which("uv"):
            return found
        call(sys.executable, "-m", "venv", own)
        call(own / SCRIPTS / "python", "-m", "pip", "install", "-q", "uv")
    return str(own / SCRIPTS / "uv")


def call(*words: Any) -> None:
    """Run a command; its words on stderr are kept for the one who asks why it failed."""
    places = (
        {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    )
    command = list(map(str, words))
    subprocess.run(command, check=True, env=places | os.environ, stderr=subprocess.PIPE, text=True)


def tested(python: Path, arguments: list[str]) -> dict[str, Any]:
    """Run pytest; how many tests passed, failed and were skipped, and in how many seconds."""
    report, begun = WORK / "report.xml", time.perf_counter()
    report.unlink(missing_ok=True)
    spread = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"]  # as `make test`
    command = [python, "-m", "pytest", "-q", *spread, f"--junitxml={report}", *arguments]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), cwd=ROOT, env=alone, check=False)
    suite = next(ET.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
        "seconds": round(time.perf_counter() - begun),
    }


def record(found: dict[str, Any]) -> None:
    """Put the run beside those of other kinds and other Pythons."""
    rows = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    key = ("kind", "python")
    rows = [row for row in rows if [row[k] for k in key] != [found[k] for k in key]]
    rows = sorted([*rows, found], key=lambda row: [row[k] for k in key])
    RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
