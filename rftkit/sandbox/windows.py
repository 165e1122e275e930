"""Windows: a job object with limits, whose processes all die with its handle."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

MEMORY = 256 << 20  # bytes of committed memory
CPU_SECONDS = 60  # set before the program and its timeout are known
_PROCESS_TIME, _ACTIVE_PROCESS, _PROCESS_MEMORY = 0x2, 0x8, 0x100
_DIE_ON_EXCEPTION, _KILL_ON_CLOSE = 0x400, 0x2000
_ALL_USER_INTERFACE = 0xFF  # clipboard, desktop, other windows, log-off


class Limits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION of the Windows API."""

    _fields_ = (
        ("process_time", ctypes.c_int64),  # 100 ns
        ("job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
        ("counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


class Job:
    """A job object around one process. Does nothing on other systems.

    Raises OSError where Windows refuses it.
    """

    def __init__(self, process: subprocess.Popen[bytes]):
        self._handle, self.absent = 0, dict[str, str]()
        if sys.platform == "win32":
            try:
                self._handle = _confine(int(process._handle), _ALL_USER_INTERFACE)
            except OSError as error:  # a job within a job may have no such limits
                self._handle = _confine(int(process._handle), 0)
                self.absent["user interface limits"] = str(error)

    def close(self) -> None:
        """Kill every process of the job."""
        if sys.platform == "win32":
            ctypes.WinDLL("kernel32").CloseHandle(ctypes.c_void_p(self._handle))
            self._handle = 0


if sys.platform == "win32":

    def _confine(process: int, user_interface: int) -> int:
        api = ctypes.WinDLL("kernel32", use_last_error=True)
        api.CreateJobObjectW.restype = ctypes.c_void_p
        handle = api.CreateJobObjectW(None, None)
        job = ctypes.c_void_p(handle)
        if not (
            handle
            and _set(api, job, 9, _limits())
            and (not user_interface or _set(api, job, 4, ctypes.c_uint32(user_interface)))
            and api.AssignProcessToJobObject(job, ctypes.c_void_p(process))
        ):
            error = ctypes.WinError(ctypes.get_last_error())
            if handle:
                api.CloseHandle(job)
            raise error
        return int(handle)

    def _set(api: ctypes.WinDLL, job: ctypes.c_void_p, kind: int, value: Any) -> int:
        size = ctypes.sizeof(value)
        return int(api.SetInformationJobObject(job, kind, ctypes.byref(value), size))

    def _limits() -> Limits:
        return Limits(
            process_time=CPU_SECONDS * 10_000_000,
            flags=_PROCESS_TIME
            | _ACTIVE_PROCESS
            | _PROCESS_MEMORY
            | _DIE_ON_EXCEPTION
            | _KILL_ON_CLOSE,
            active_processes=1,
            process_memory=MEMORY,
        )
