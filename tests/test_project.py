"""What holds for the project as a whole: light imports, pins, docstrings, sizes."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rftkit.paths import DATA, MODELS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = sorted((ROOT / "rftkit").rglob("*.py"))

# Each costs more time than all of `rftkit --help` may take.
HEAVY = {"accelerate", "bitsandbytes", "gymnasium", "matplotlib", "peft", "torch", "transformers"}


def imported(*arguments: str) -> set[str]:
    """Top-level packages that `python <arguments>` imports; the command must succeed."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^import time:.*\| +(\w+)", done.stderr, re.MULTILINE))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("==") for line in lines if not line.startswith("#")]
    return {normal(name): version for name, version in rows}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def own_files() -> Iterator[Path]:
    """Files of the project, without asking git: it may be unpacked from an archive."""
    yield from (p for p in ROOT.iterdir() if p.is_file())
    for folder in ("rftkit", "data", "docs", "examples", "notebooks", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts):
                yield path


def test_importing_rftkit_loads_nothing_heavy() -> None:
    packages = imported("-c", "import rftkit")
    assert "rftkit" in packages
    assert not packages & HEAVY


def test_public_names_are_the_same_whatever_was_imported_before() -> None:
    check = (
        "import inspect, rftkit; assert inspect.isfunction(rftkit.compare); assert all("
        "hasattr(rftkit, n) for n in [*rftkit.__all__, 'sandbox']); assert not hasattr(rftkit, 'x')"
    )
    for first in ("", "import rftkit.sweep, rftkit.comparison, rftkit.report; "):
        imported("-c", first + check)


def test_help_loads_nothing_heavy() -> None:
    packages = imported("-m", "rftkit.cli", "--help")
    assert "rftkit" in packages
    assert not packages & HEAVY


def test_every_requirement_is_pinned_inside_its_range() -> None:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    pinned = pins()
    for requirement in map(Requirement, lines):
        assert pinned[normal(requirement.name)] in requirement.specifier, requirement


def test_pins_hold_on_every_platform() -> None:
    local = {name: version for name, version in pins().items() if "+" in version}
    assert not local, "a local version such as +cpu exists on one kind of machine only"
    assert {"appnope", "colorama", "pywinpty"} <= set(pins()), "what macOS and Windows add"


@pytest.mark.parametrize("file", ["environment.yml", "Makefile"])
def test_both_ways_to_set_up_install_the_same(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f".[{','.join(EXTRAS)}]" in text
    assert "constraints.txt" in text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    private = re.compile(rb"/(?:home|Users|root|work)/\w|[A-Z]:\\+Users\\")
    named = {path: private.search(path.read_bytes()) for path in own_files()}
    assert not {path: hit.group() for path, hit in named.items() if hit}


def test_data_stays_small_and_holds_no_pickle() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert sum(path.stat().st_size for path in MODELS.rglob("*.safetensors")) <= 10e6
    assert not [p for p in files if p.suffix in {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}]


LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [path for path in own_files() if path.suffix in (".md", ".ipynb")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Files, and headings in them."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for link in LINK.findall(text):
        if "://" in link or link.startswith("attachment:"):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading and target.suffix == ".md":
            found = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            names = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in found}
            assert heading in names, link
