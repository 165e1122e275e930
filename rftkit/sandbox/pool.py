"""Warm workers, as many as run at a time; each program gets a process of its own."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from rftkit.sandbox.launch import Config, outer_layers
from rftkit.sandbox.worker import ForkingWorker, Outcome, SingleWorker, Worker, WorkerError

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """A context manager. Threads may share it; a forked process may not, and needs its own.

    workers: programs at a time, by default one for each usable core. without: layers to leave
    out (for tests). fork: one child a program where the system can, else one worker a program.
    """

    def __init__(
        self,
        workers: int | None = None,
        without: Sequence[str] = (),
        fork: bool = hasattr(os, "fork"),
    ):
        self.workers = workers or usable_cores()
        self.in_force: tuple[str, ...] = ()
        self.absent: dict[str, str] = {}
        self._without, self._fork = tuple(without), fork
        self._config: Config | None = None
        self._idle: list[Worker] = []
        self._adopt()

    def run(self, request: dict[str, Any], timeout: float) -> Outcome:
        """Run one request (see inside/program.py). Raises WorkerError where no worker starts."""
        while True:
            worker, fresh = self._take()
            try:
                outcome = worker.run(request, timeout)
            except BaseException as error:
                worker.close()
                if isinstance(error, WorkerError) and not fresh:
                    continue  # it had died while idle
                raise
            self._give_back(worker)
            return outcome

    def map(self, function: Callable[[T], R], items: Sequence[T], workers: int | None) -> list[R]:
        """`function` of each item, in order, in as many threads as there may be workers."""
        threads = min(workers or self.workers, len(items))
        if threads <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(threads, thread_name_prefix="rftkit-sandbox") as executor:
            return list(executor.map(function, items))

    def start(self) -> None:
        """Find out which layers work here, once: then `in_force` and `absent` are set."""
        if self._owner != os.getpid():
            self._adopt()
        with self._lock:
            if self._config is None:
                self._idle.append(self._first())
                self._warn()

    def close(self) -> None:
        """End all idle workers. The pool may be used again, and then starts new ones."""
        if self._owner != os.getpid():
            return
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _adopt(self) -> None:
        # A forked copy of this process starts with no workers: those belong to the original.
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._idle = []

    def _take(self) -> tuple[Worker, bool]:
        self.start()
        with self._lock:
            if self._idle:
                return self._idle.pop(), False
        return self._new(), True

    def _give_back(self, worker: Worker) -> None:
        if worker.spent:
            worker.close()
            if self._fork:
                return
            worker = self._new()  # boots while the caller goes on
        with self._lock:
            self._idle.append(worker)

    def _new(self) -> Worker:
        assert self._config is not None
        return self._kind(self._config)

    @property
    def _kind(self) -> type[Worker]:
        return ForkingWorker if self._fork else SingleWorker

    def _first(self) -> Worker:
        worker = self._settle(Config(self._fork, "", None, self._without))
        if not self._fork or {"namespaces", "landlock"} <= set(worker.in_force):
            return worker
        for outer in outer_layers():
            if outer in self._without:
                continue
            # bubblewrap makes namespaces of its own, and so does more where Landlock is missing.
            inner = ("namespaces",) if outer == "bubblewrap" else ()
            try:
                confined = self._settle(Config(True, outer, None, (*self._without, *inner)))
            except WorkerError as error:
                self.absent[outer] = str(error)
                continue
            worker.close()
            return confined
        return worker

    def _warn(self) -> None:
        have = set(self.in_force)
        if not have & {"bubblewrap", "seatbelt"} and not have >= {"landlock", "seccomp"}:
            warnings.warn(
                "the sandbox is weak on this machine: `rftkit doctor` says what it does not stop",
                RuntimeWarning,
                stacklevel=2,
            )

    def _settle(self, config: Config) -> Worker:
        """Start a worker that tries each layer; all later ones must reach the same."""
        worker = self._kind(config)
        self._config = replace(config, wanted=worker.in_force)
        outer = config.outer or ("job object" if os.name == "nt" else "")
        self.in_force = (outer, *worker.in_force) if outer else worker.in_force
        self.absent = {**self.absent, **worker.absent}
        return worker


def usable_cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
