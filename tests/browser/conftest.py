"""JupyterLab on a free port with a token, a page of Debian's Chromium, and screenshots."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

OUT = Path(__file__).parents[2] / "out" / "browser"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 150  # seconds; the first import of torch on a busy machine takes its time

# No question about news, and every cell in the page even where it is not in sight.
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false"}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


@pytest.fixture(scope="session")
def work() -> Path:
    """A folder to work in, whose notebooks may be changed: out/browser/work."""
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "work").mkdir(parents=True)
    return OUT / "work"


@pytest.fixture(scope="session")
def jupyter(work: Path) -> Iterator[Callable[[str], str]]:
    """A running JupyterLab; gives the address of a notebook in `work`."""
    home = OUT / "jupyter"
    for name, text in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = {
        **{key: value for key, value in os.environ.items() if key != "MPLBACKEND"},
        **{f"JUPYTER_{key}": str(home / name) for key, name in places.items()},
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--ServerApp.root_dir={work}", f"--IdentityProvider.token={token}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (OUT / "jupyter.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server)
            yield lambda name: f"http://127.0.0.1:{port}/doc/tree/{name}?token={token}"
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(scope="session")
def page() -> Iterator[object]:
    """A page of a headless browser. Skips, and says why, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here (Debian: sudo apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        playwright.expect.set_options(timeout=1000 * PATIENCE)
        yield page
        page.screenshot(path=OUT / "last.png")
        browser.close()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab ended: see {OUT / 'jupyter.log'}"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"JupyterLab did not answer: see {OUT / 'jupyter.log'}")
