"""Runs lessons the way they are kept: `python -m rftkit.lessons notebooks/01_*.ipynb`.

Each notebook runs from a clean kernel and is written back with its outputs, without what changes
from run to run or from machine to machine. What a lesson took goes to measured.json beside it, and
from there into the box at its top and the course map. For reading and editing use JupyterLab.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbformat import NotebookNode

from rftkit.paths import DATA, TINY_MODEL
from rftkit.runs import write_text

CELL_SECONDS = 120
_BOX = re.compile(r"(<!-- measured -->).*?(<!-- end -->)", re.DOTALL)
_COLAB = re.compile(r"\n>\n> \*\*On Colab:\*\* .*")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_KEPT = ("tags", "alt", "jupyter")  # of a cell; the last one folds it
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(
    notebook: NotebookNode, folder: Path, cell_seconds: int = CELL_SECONDS
) -> dict[str, float]:
    """Run all cells in `folder`, outputs in place; returns seconds and peak GB of the kernel.

    The kernel's start is not counted, imports are. Raises CellExecutionError where a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=cell_seconds,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
    )
    with client.setup_kernel():
        start = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        seconds = time.perf_counter() - start
        kernel: Any = client.km
        gb = _peak_gb(kernel.provisioner.pid)
    return {"seconds": round(seconds), "gb": round(gb, 1)}


def _peak_gb(pid: int) -> float:
    """Largest resident size of a process so far, in GB; on macOS its present one."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
    memory = psutil.Process(pid).memory_info()
    return getattr(memory, "peak_wset", memory.rss) / 1e9


def tidy(notebook: NotebookNode) -> None:
    """Drop widget state, the Python version and other metadata that only make diffs longer.

    An explorer's output keeps its picture, which needs no kernel; without state the widget itself
    would be an error message on the page.
    """
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", {}):
                output["data"].pop(_WIDGET, None)
        if "outputs" in cell:  # what is left are progress bars
            cell.outputs = [o for o in cell.outputs if _WIDGET not in o.get("data", {})]
        kept = {key: cell.metadata[key] for key in _KEPT if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)


def made_with(notebook: NotebookNode) -> str:
    """A hash of what outputs follow from: the code, the embedded model and the recorded runs.

    A lesson whose `made_with` is another shows what is no longer so, and has to run again.
    """
    whole = hashlib.sha256()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            whole.update(cell.source.encode())
    recorded = [*TINY_MODEL.glob("*"), *(DATA / "runs").glob("*/**/*.json*")]
    for path in sorted(recorded):
        if path.is_file() and path.suffix != ".md" and "study" not in path.parts:
            whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def fill(text: str, measured: dict[str, dict[str, float]]) -> str:
    """`text` with the box's line rewritten from {device: {"seconds", "gb"}}."""
    return _BOX.sub(lambda found: found[1] + _cost(measured) + found[2], text)


def fill_map(text: str, record: dict[str, dict[str, dict[str, float]]]) -> str:
    """The course map with each lesson's cost rewritten from {lesson: {device: ...}}."""
    for name, measured in record.items():
        place = re.compile(rf"(<!-- measured {name} -->).*?(<!-- end -->)")
        text = place.sub(rf"\g<1>{_cost(measured)}\g<2>", text)
    return text


def with_colab(box: str, lesson: str, repository: str) -> str:
    """A lesson's box with a link to Colab and the line that installs the kit there.

    repository: OWNER/NAME on GitHub, from where Colab reads notebooks.
    """
    link = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{lesson}"
    install = f'%pip install -q "rftkit[notebooks] @ git+https://github.com/{repository}"'
    line = f"\n>\n> **On Colab:** [open]({link}.ipynb), and in a first cell run `{install}`."
    return _COLAB.sub("", box).rstrip("\n") + line


def link_colab(path: Path, repository: str) -> None:
    """Write the link into one lesson; nothing is run."""
    notebook: Any = nbformat.read(path, as_version=4)
    notebook.cells[0].source = with_colab(notebook.cells[0].source, path.stem, repository)
    write_text(path, nbformat.writes(notebook) + "\n")


def _cost(measured: dict[str, dict[str, float]]) -> str:
    parts = [f"{_duration(m['seconds'])} and {m['gb']:g} GB on {d}" for d, m in measured.items()]
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def device_name() -> str:
    """The device a lesson uses here, in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"


def run(path: Path, cell_seconds: int = CELL_SECONDS) -> None:
    """Run one notebook and write it back; if it has a box, record what it took."""
    notebook: Any = nbformat.read(path, as_version=4)
    cost = execute(notebook, path.parent, cell_seconds)
    tidy(notebook)
    notebook.metadata["made_with"] = made_with(notebook)
    if _BOX.search(notebook.cells[0].source):
        place = path.with_name("measured.json")
        record = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        record.setdefault(path.stem, {})[device_name()] = cost
        write_text(place, json.dumps(record, indent=1, sort_keys=True) + "\n")
        notebook.cells[0].source = fill(notebook.cells[0].source, record[path.stem])
        course = path.with_name("README.md")
        if course.exists():
            write_text(course, fill_map(course.read_text(encoding="utf-8"), record))
    nbformat.validate(notebook)
    write_text(path, nbformat.writes(notebook) + "\n")
    print(f"{path}: {cost['seconds']:.0f} s, {cost['gb']:g} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run notebooks in place.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument(
        "--cell-seconds", type=int, default=CELL_SECONDS, help="limit of a cell; more where busy"
    )
    parser.add_argument(
        "--colab", metavar="OWNER/NAME", help="run nothing; link to Colab, by the place on GitHub"
    )
    arguments = parser.parse_args()
    for given in arguments.notebooks:
        if arguments.colab:
            link_colab(given, arguments.colab)
        else:
            run(given, arguments.cell_seconds)
