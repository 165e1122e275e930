"""One worker process as the parent sees it: give it a program, get back what the program said.

Everything a worker hands back may be forged by the program. So it is only bytes here, cut off
at a limit, and the exit status never counts as a result.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rftkit.sandbox.inside.folder import empty
from rftkit.sandbox.launch import Config, start
from rftkit.sandbox.windows import Job

MAX_RESULTS = 1 << 20  # bytes that all returned values of a program may take
MAX_OUTPUT = 64 << 10  # bytes of standard output
_START_SECONDS, _END_SECONDS = 30.0, 10.0


@dataclass(frozen=True)
class Outcome:
    """What one program left: bytes to judge, and why it stopped.

    stopped: "" where it ended by itself, else "timeout", "flood" or "lost" (its worker died).
    status: exit code, or minus the signal; for error messages only.
    """

    results: bytes
    output: bytes
    stopped: str
    status: int


class WorkerError(Exception):
    """The worker cannot take a program; nothing of it has run."""


class Worker:
    """A warm process and its temp folder. `spent`: it takes no other program.

    in_force, absent: the layers that the process itself put on, and why others are not.
    """

    def __init__(self, config: Config):
        self.spent = False
        self.in_force: tuple[str, ...] = ()
        self.absent: dict[str, str] = {}
        self.box = Path(tempfile.mkdtemp(prefix="rftkit-")).resolve()
        try:
            self._start(config)
        except BaseException:
            _remove(self.box)
            raise

    def run(self, request: dict[str, Any], timeout: float) -> Outcome:
        """Run one request (see inside/program.py) for at most `timeout` seconds.

        Raises WorkerError where the worker turned out to be dead before it took the request.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the worker with all that it started, and delete its folder."""
        self._stop()
        _remove(self.box)

    def _start(self, config: Config) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError


class ForkingWorker(Worker):
    """Linux and macOS: the process forks one child a program and kills its whole tree."""

    def _start(self, config: Config) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = start(config, self.box, theirs.fileno())
            except OSError as error:
                self._control.close()
                raise WorkerError(f"no sandbox worker starts ({error})") from None
        self._control.settimeout(_START_SECONDS)
        try:
            hello = self._receive()
            if "failed" in hello:
                raise WorkerError(f"a sandbox worker could not confine itself: {hello['failed']}")
        except (OSError, WorkerError) as error:
            self._stop()
            raise WorkerError(str(error)) from None
        self.in_force, self.absent = tuple(hello["in_force"]), hello["absent"]
        self._control.settimeout(_END_SECONDS)

    def run(self, request: dict[str, Any], timeout: float) -> Outcome:
        limits = [MAX_RESULTS] if request["calls"] is not None else [MAX_RESULTS, MAX_OUTPUT]
        pipes = [os.pipe() for _ in limits]
        readers, writers = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
        try:
            try:
                self._hand_over(request, writers)
            finally:
                _close(writers)
            data, stopped = _collect(dict(zip(readers, limits, strict=True)), timeout)
        finally:
            _close(readers)
        try:
            self._control.sendall(b"E")
            status = self._receive()["status"]
        except OSError:
            self.spent = True
            return Outcome(b"", b"", "lost", 0)
        results, output = [bytes(data[reader]) for reader in readers] + [b""] * (2 - len(readers))
        return Outcome(results, output, stopped, status)

    def _hand_over(self, request: dict[str, Any], writers: list[int]) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(request).encode())
            file.seek(0)
            try:
                socket.send_fds(self._control, [b"R"], [file.fileno(), *writers])
            except OSError as error:
                raise WorkerError(f"the sandbox worker is gone ({error})") from None

    def _receive(self) -> dict[str, Any]:
        # From the worker itself, which no program can write to.
        size = int.from_bytes(self._read(4), "big")
        message: dict[str, Any] = json.loads(self._read(size))
        return message

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._control.recv(size - len(data))
            if not chunk:
                raise ConnectionResetError("the sandbox worker ended")
            data += chunk
        return data

    def _stop(self) -> None:
        self._control.close()  # on which the worker ends its program and itself
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class SingleWorker(Worker):
    """Windows: a warm process, in a job object, that runs one program and is spent."""

    def _start(self, config: Config) -> None:
        pipe, self._ready = subprocess.PIPE, False
        self._job: Job | None = None
        try:
            self._process = start(config, self.box, pipe, pipe, pipe)
        except OSError as error:
            raise WorkerError(f"no sandbox worker starts ({error})") from None
        try:
            self._job = Job(self._process)
        except OSError as error:
            self._stop()
            raise WorkerError(f"no job object for a sandbox worker ({error})") from None
        if config.wanted is None:
            self._await()

    def run(self, request: dict[str, Any], timeout: float) -> Outcome:
        if not self._ready:
            self._await()  # its boot is no part of the program's time
        self.spent = True
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin
        assert stdout
        assert stderr
        try:
            stdin.write(json.dumps(request).encode())
            stdin.close()
        except OSError as error:
            raise WorkerError(f"the sandbox worker is gone ({error})") from None
        results, output = _Drain(stdout, MAX_RESULTS), _Drain(stderr, MAX_OUTPUT)
        deadline = time.monotonic() + timeout
        for drain in (results, output):
            drain.join(max(0.0, deadline - time.monotonic()))
        stopped = "timeout" if results.is_alive() or output.is_alive() else ""
        self._kill()
        for drain in (results, output):
            drain.join()
        stopped = "flood" if results.full or output.full else stopped
        return Outcome(bytes(results.data), bytes(output.data), stopped, self._process.wait())

    def _await(self) -> None:
        assert self._process.stdout
        line = self._process.stdout.readline()  # no program has run yet
        if not line:
            self._stop()
            raise WorkerError("a sandbox worker could not confine itself")
        hello = json.loads(line)
        self.in_force = tuple(hello["in_force"])
        self.absent = hello["absent"] | (self._job.absent if self._job else {})
        self._ready = True

    def _stop(self) -> None:
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def _kill(self) -> None:
        if sys.platform == "win32":
            if self._job:
                self._job.close()
            self._process.kill()
        elif self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class _Drain(threading.Thread):
    """Reads a pipe to its end, or to a limit; then it is `full`."""

    def __init__(self, stream: IO[bytes], limit: int):
        super().__init__(daemon=True)
        self.data, self.full = bytearray(), False
        self._stream, self._limit = stream, limit
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._stream.fileno(), 1 << 16):
            self.data += chunk
            if len(self.data) > self._limit:
                self.full = True
                return


def _collect(limits: dict[int, int], seconds: float) -> tuple[dict[int, bytearray], str]:
    """Read pipes to their ends; "timeout" or "flood" (over a limit in bytes) where stopped."""
    deadline = time.monotonic() + seconds
    data = {descriptor: bytearray() for descriptor in limits}
    poll = select.poll()
    for descriptor in limits:
        poll.register(descriptor, select.POLLIN)
    still_open = set(limits)
    while still_open:
        left = deadline - time.monotonic()
        if left <= 0:
            return data, "timeout"
        for descriptor, _ in poll.poll(math.ceil(left * 1000)):
            chunk = os.read(descriptor, 1 << 16)
            data[descriptor] += chunk
            if len(data[descriptor]) > limits[descriptor]:
                return data, "flood"
            if not chunk:
                poll.unregister(descriptor)
                still_open.remove(descriptor)
    return data, ""


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Delete a worker's folder. What cannot be deleted stays: no program may end its caller."""
    with suppress(OSError):  # Windows may hold a file for a moment after its process has ended
        empty(folder)
    shutil.rmtree(folder, ignore_errors=True)
