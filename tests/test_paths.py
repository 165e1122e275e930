"""Where the shipped data is found."""

import subprocess
import sys
from pathlib import Path

import rftkit


def test_an_installed_package_takes_its_own_data(tmp_path: Path) -> None:
    """Another package's folder `data` may lie beside it."""
    source = Path(rftkit.__file__).with_name("paths.py")
    for folder in ("data", "rftkit/data"):
        (tmp_path / folder).mkdir(parents=True)
    copy = tmp_path / "rftkit" / "paths.py"
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    show = f"import runpy; print(runpy.run_path({str(copy)!r})['DATA'])"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == (tmp_path / "rftkit/data").resolve()
