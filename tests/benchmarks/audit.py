"""constraints.txt against the list of known vulnerabilities: `python tests/benchmarks/audit.py`.

pip-audit gets an environment of its own, out/audit. Ends with status 1 where a pin is vulnerable,
and with 3 and one line where this machine cannot ask.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "out" / "audit"


def main(pins: Path = ROOT / "constraints.txt") -> int:
    python = HERE / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    quiet = {"capture_output": True, "text": True}
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", HERE], check=True)
    made = subprocess.run([python, "-m", "pip", "install", "-q", "pip-audit>=2.9,<3"], **quiet)
    asked = ["--requirement", pins, "--no-deps", "--disable-pip", "--format", "json"]
    done = made if made.returncode else subprocess.run(
        [python, "-m", "pip_audit", "--progress-spinner", "off", *asked], **quiet
    )  # fmt: skip
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"not audited: pip-audit cannot ask from here ({last[:300]})", file=sys.stderr)
        return 3
    bad = [(row["name"], row["version"], v["id"]) for row in rows for v in row.get("vulns", ())]
    for found in bad:
        print(*found)
    print(f"{len(rows)} pins, {len(bad)} known vulnerabilities")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
