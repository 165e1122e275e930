"""The demo and every lesson with the network cut off, in a name space that has no other machine.

Part of `make soak`. A share of it, one step of the demo, is in test_supply.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted(ROOT.glob("notebooks/[0-9]*.ipynb")) + sorted(
    ROOT.glob("notebooks/solutions/*.ipynb")
)
ALONE = ["unshare", "--user", "--map-root-user", "--net"]
# A notebook talks to its kernel over the loopback device, which a new name space has switched off.
LOOPBACK = """
import fcntl, os, socket, struct, sys
with open("/proc/self/net/dev") as file:
    devices = [line.partition(":")[0].strip() for line in file if ":" in line]
assert devices == ["lo"], devices
up_and_running = 0x1 | 0x40
with socket.socket() as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", up_and_running))  # SIOCSIFFLAGS
os.execvp(sys.argv[1], sys.argv[1:])
"""


def _can_be_cut_off() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not _can_be_cut_off(), reason="this system gives us no network name space"),
]


def cut_off(*words: str, folder: Path) -> str:
    """Run Python on `words` without a network; what it printed."""
    command = [*ALONE, sys.executable, "-c", LOOPBACK, sys.executable, *words]
    free = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(command, cwd=folder, env=free, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_demo_needs_no_network(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(
        r"^demo:.*\n\t\$\(BIN\)/rftkit (compare .*) --out out/demo$", makefile, re.M
    )
    words = [*command.split(), "--steps", "3", "--out", str(tmp_path)]
    assert "curves.png" in cut_off("-m", "rftkit.cli", *words, folder=tmp_path)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_lesson_needs_no_network(tmp_path: Path, path: Path) -> None:
    copy = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", copy, ignore=shutil.ignore_patterns("out", ".ipynb_*"))
    (copy / "measured.json").unlink()
    place = copy / path.relative_to(ROOT / "notebooks")
    assert place.stem in cut_off("-m", "rftkit.lessons", str(place), folder=place.parent)
