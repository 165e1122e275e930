"""What `rftkit doctor` says: whether the kit can work here, and if not, what to do.

It tries things instead of guessing from the platform. Each check adds its facts to the report and
one entry, with a remedy, for whatever keeps the kit from working as shipped.
"""

from __future__ import annotations

import platform
import textwrap
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from tqdm import tqdm

from rftkit.paths import TINY_MODEL

if TYPE_CHECKING:
    import torch

Problems = list[dict[str, str]]

INSTALL = "in a clone: make .venv, or pip install -c constraints.txt -e '.[notebooks,test,gym,trl]'"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")

# NF4 with blocks of 64 changes Gaussian weights by 9%; a kernel that is far off is broken.
MAX_QUANTISATION_ERROR = 0.15


def report() -> dict[str, Any]:
    """Facts about this machine, as JSON types; `ok` is True where `problems` is empty.

    Keys: ok, rftkit, python, platform, packages (name: version, None = absent), device, four_bit,
    sandbox, model, problems. Takes seconds: it imports everything and tries it.
    """
    problems: Problems = []
    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for check in tqdm((_packages, _compute, _sandbox, _model), "doctor", leave=False, disable=None):
        facts |= check(problems)
    return {"ok": not problems, **facts, "problems": problems}


def table(facts: dict[str, Any]) -> str:
    """The report for a person to read: a line a fact, then each problem with its remedy."""
    rows = {
        "rftkit": facts["rftkit"] or "not installed",
        "Python": f"{facts['python']} on {facts['platform']}",
        "packages": _packages_line(facts["packages"]),
        "device": _device_line(facts["device"]),
        "4-bit": _four_bit_line(facts["four_bit"]),
        "sandbox": _sandbox_line(facts["sandbox"]),
        "tiny model": "there" if facts["model"]["present"] else "missing",
    }
    lines = [
        textwrap.fill(
            f"{name:<11} {value}", 100, subsequent_indent=" " * 12, break_on_hyphens=False
        )
        for name, value in rows.items()
    ]
    for entry in facts["problems"]:
        lines += ["", f"problem: {entry['problem']}", f"remedy:  {entry['remedy']}"]
    return "\n".join(lines if facts["problems"] else [*lines, "", "Everything works."])


def _packages_line(packages: dict[str, str | None]) -> str:
    there = [f"{name} {version}" for name, version in packages.items() if version]
    absent = [name for name, version in packages.items() if not version]
    return ", ".join(there) + (f"; absent: {', '.join(absent)}" if absent else "")


def _device_line(device: dict[str, Any] | None) -> str:
    if device is None:
        return "unknown"
    return f"{device['type']}: {device['name']}, {device['memory_gb']} GB"


def _four_bit_line(four_bit: dict[str, Any]) -> str:
    if not four_bit["supported"]:
        return f"does not work: {four_bit['reason']}"
    return f"works; NF4 changes random weights by {four_bit['relative_error']:.1%}"


def _sandbox_line(sandbox: dict[str, Any]) -> str:
    absent = [f"{name} ({reason})" for name, reason in sandbox["absent"].items()]
    unstopped = [harm for harm, stopped in sandbox["stopped"].items() if not stopped]
    parts = [", ".join(sandbox["in_force"]) or "no layer in force"]
    if absent:
        parts.append(f"absent: {', '.join(absent)}")
    if unstopped:
        parts.append(f"does not stop {', '.join(unstopped)}, so run code tasks in a container")
    return "; ".join(parts)


def _packages(problems: Problems) -> dict[str, Any]:
    version = _version("rftkit")
    if version is None:
        _add(problems, "rftkit is on the path but not installed", INSTALL)
        return {"rftkit": None, "packages": {}}
    packages: dict[str, str | None] = {}
    for requirement in map(Requirement, metadata.requires("rftkit") or ()):
        found = packages[requirement.name] = _version(requirement.name)
        optional = requirement.marker and not requirement.marker.evaluate({"extra": ""})
        wanted = f"{requirement.name}{requirement.specifier}"
        if found is None and not optional:
            _add(problems, f"{requirement.name} is not installed", f"pip install '{wanted}'")
        elif found and not requirement.specifier.contains(found, prereleases=True):
            problem = f"{requirement.name} {found} is not {requirement.specifier}"
            _add(problems, problem, f"pip install '{wanted}'")
    if packages.get("torch"):
        with suppress(ImportError):
            from torch.version import __version__

            packages["torch"] = __version__  # names the build (CPU, CUDA), as metadata may not
    return {"rftkit": version, "packages": dict(sorted(packages.items()))}


def _compute(problems: Problems) -> dict[str, Any]:
    try:
        from rftkit.models import pick_device
    except Exception as error:  # a broken library may raise anything when it is imported
        reason = _first_line(error)
        _add(problems, f"the model libraries cannot be imported ({reason})", INSTALL)
        return {"device": None, "four_bit": _four_bit_fails(reason)}
    device = pick_device("auto")
    four_bit = try_four_bit(device)
    if not four_bit["supported"]:
        _add(
            problems,
            f"4-bit (NF4) does not work on {device.type}: {four_bit['reason']}",
            "pass --precision bf16 or fp32 (runs fall back by themselves), or --device cpu",
        )
    return {"device": _describe(device), "four_bit": four_bit}


def try_four_bit(device: torch.device) -> dict[str, Any]:
    """Quantise a small matrix to NF4 on `device`, restore it, and multiply through it.

    Gives supported, relative_error (‖restored − matrix‖ / ‖matrix‖, None where it failed) and
    reason (None where it works).
    """
    import torch

    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
        restored = dequantize_4bit(packed, state)
        product = matmul_4bit(matrix, packed.t(), quant_state=state)
    except Exception as error:  # whatever is missing (kernel, driver, library), it does not work
        return _four_bit_fails(_first_line(error))
    loss = float((restored - matrix).norm() / matrix.norm())
    exact = matrix @ restored.t()
    if not loss < MAX_QUANTISATION_ERROR or not (product - exact).norm() < 0.02 * exact.norm():
        return _four_bit_fails(f"wrong numbers (relative error {loss:.2g})")
    return {"supported": True, "relative_error": round(loss, 4), "reason": None}


def _sandbox(problems: Problems) -> dict[str, Any]:
    from rftkit import sandbox
    from rftkit.sandbox.worker import WorkerError

    try:
        return {"sandbox": sandbox.layers()}
    except (OSError, WorkerError) as error:
        reason = _first_line(error)
        remedy = "train on dialogue or game; only tasks that run model-written code need it"
        _add(problems, f"the sandbox does not start: {reason}", remedy)
        return {"sandbox": {"in_force": [], "absent": {}, "stopped": {}, "not_covered": []}}


def _model(problems: Problems, folder: Path = TINY_MODEL) -> dict[str, Any]:
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        problem = f"the shipped model lacks {', '.join(missing)} in {folder}"
        _add(problems, problem, "clone or install rftkit anew: the model is part of it")
    return {"model": {"path": str(folder), "present": not missing}}


def _describe(device: torch.device) -> dict[str, Any]:
    """type, name and memory_gb: the accelerator's memory, or the machine's."""
    import psutil
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    elif device.type == "mps":
        name, memory = platform.processor(), torch.mps.recommended_max_memory()
    else:
        name, memory = platform.processor(), psutil.virtual_memory().total
    return {
        "type": device.type,
        "name": name or platform.machine(),
        "memory_gb": round(memory / 1e9, 1),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _four_bit_fails(reason: str) -> dict[str, Any]:
    return {"supported": False, "relative_error": None, "reason": reason}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _add(problems: Problems, problem: str, remedy: str) -> None:
    problems.append({"problem": problem, "remedy": remedy})
