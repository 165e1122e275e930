"""Measured peak memory: of the tensors in this process, and of a training run in a fresh one.

Run as a module it is that fresh process: it trains a few steps and prints what they took. What is
predicted instead of measured is in `rftkit.estimate`.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from rftkit.allocator import keep_freed_memory
from rftkit.config import RunConfig
from rftkit.models import Policy, load_policy, pick_device
from rftkit.trainer import Trainer

GB = 1e9
STEPS = 2  # of training: from the second on the optimiser has its state, and peaks repeat


def tensor_peak_gb(work: Callable[[], object], device: torch.device) -> float:
    """GB of tensors that `work` had alive at its worst moment, beyond those alive before it.

    On a CPU a profiler watches the allocator, which does not see weights that are mapped from a
    file; on CUDA the allocator's own count is read.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / GB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    found.sort(key=lambda e: e["ts"])
    if not found:
        return 0.0
    # The count goes on from an earlier profile in this process.
    before = found[0]["args"]["Total Allocated"] - found[0]["args"]["Bytes"]
    return (max(e["args"]["Total Allocated"] for e in found) - before) / GB


def run_peak_gb(config: RunConfig) -> dict[str, float]:
    """Peaks of a few training steps in a fresh process, in GB.

    process: on a CPU the resident size of the whole process, on CUDA what the allocator took from
    the device. before: the same once everything is imported, before the model is loaded. tensors:
    weights and all others. Raises RuntimeError where the process fails.
    """
    command = [sys.executable, "-m", "rftkit.memory", json.dumps(config.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"measuring the memory of a run failed: {lines[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(config: RunConfig) -> dict[str, float]:
    device = pick_device(config.device, config.model)
    if device.type == "cuda":
        tensors = tensor_peak_gb(lambda: _train(config), device)
        process = torch.cuda.max_memory_reserved(device) / GB
        return {"before": 0.0, "process": process, "tensors": tensors}
    keep_freed_memory()
    (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()  # threads start
    before = psutil.Process().memory_info().rss / GB
    _forget_peak()
    _train(config)
    process = _peak_rss() / GB
    policy = load_policy(
        config.model, config.precision, config.device, lora_rank=config.lora_rank, seed=config.seed
    )
    steps = tensor_peak_gb(lambda: _train(config, policy), device)
    return {
        "before": before,
        "process": process,
        "tensors": sum(policy.memory_gb().values()) + steps,
    }


def _train(config: RunConfig, policy: Policy | None = None) -> None:
    steps = Trainer(config, policy=policy).steps()
    for _ in range(STEPS):
        next(steps)


def _forget_peak() -> None:
    """Let the peak start from here, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then it holds the peak of the imports too, which the run exceeds


def _peak_rss() -> int:
    """Bytes: the largest resident size of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would start from the size of the parent process
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    print(json.dumps(_measure(RunConfig.from_dict(json.loads(sys.argv[1])))))
