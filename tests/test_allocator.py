"""The allocator's setting is taken where there is one to set."""

import platform

from rftkit.allocator import keep_freed_memory


def test_it_is_taken_by_glibc_and_by_no_other() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
