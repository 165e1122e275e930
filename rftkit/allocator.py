"""One setting of the C library that makes small models on a CPU train faster."""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's parameters, from malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next step instead of giving it back to the system.

    A training step frees and asks again for hundreds of megabytes; by default each time is a trip
    to the kernel, which clears the pages anew. Returns False, and does nothing, on other C
    libraries. The process holds on to its peak memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, size)
        for parameter, size in (
            (_MMAP_THRESHOLD, 1 << 30),
            (_TRIM_THRESHOLD, (1 << 31) - 1),
            (_TOP_PAD, 64 << 20),
        )
    )
