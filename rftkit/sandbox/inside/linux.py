"""Linux by ctypes: namespaces, Landlock, capabilities. Each call raises OSError where refused."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

BOX_OPTIONS = b"size=32m,nr_inodes=1024,mode=700"  # the temp folder, where it can be a tmpfs

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_REST = 0x10000000, 0x20000000 | 0x40000000 | 0x08000000 | 0x00020000
_READONLY, _HARDENED, _PRIVATE = 1, 2 | 4 | 8, 0x44000  # mount flags: nosuid, nodev, noexec
_KILL = 9

# Landlock's file rights. A right is handled (so denied unless granted) from an ABI version on.
_READ_FILE, _READ_DIR, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
_FILE_RIGHTS_BY_ABI = ((1, (1 << 13) - 1), (2, 1 << 13), (3, _TRUNCATE), (5, 1 << 15))
_SPECIAL = 1 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 15  # exec, devices, links
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def enter_namespaces(box: Path, remove: bool) -> None:
    """Go on as process 1 of new user, process, network, IPC and mount namespaces.

    No network device, no other process in sight, `box` an empty tmpfs. All processes of the
    namespace die with process 1. The process that called waits for it and never returns; with
    `remove` it deletes the folder at the end.
    """
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEW_USER | _NEW_REST)
    except OSError:
        _call("unshare", _NEW_REST)  # root where user namespaces are switched off
    else:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    first = os.fork()
    if first:
        os.closerange(3, 1 << 16)
        code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        if remove:
            with contextlib.suppress(OSError):
                _call("umount2", bytes(box), 2)
                box.rmdir()
        os._exit(code if code >= 0 else 128 - code)
    die_with_parent()
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None)
    _tmpfs(box, _HARDENED, BOX_OPTIONS)
    _tmpfs(Path("/proc"), _HARDENED | _READONLY, b"size=4k")  # it shows the host's processes


def die_with_parent() -> None:
    """SIGKILL this process when its parent ends."""
    _prctl(1, _KILL)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent has ended, so that they can be found."""
    _prctl(36, 1)


def drop_privileges() -> None:
    """No capabilities, none to be gained, no core dump, not traceable by its own user."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    _prctl(4, 0)  # PR_SET_DUMPABLE


def landlock_abi() -> int:
    """Version of Landlock. Raises OSError where the kernel has none."""
    return _syscall(_CREATE_RULESET, None, 0, 1)


def landlock_ruleset(box: Path) -> int:
    """File descriptor of a ruleset: read Python's library, change files in `box`, nothing else."""
    abi = landlock_abi()
    handled = sum(bits for since, bits in _FILE_RIGHTS_BY_ABI if abi >= since)
    attributes = [handled]
    if abi >= 4:
        attributes.append(3)  # bind and connect over TCP
    if abi >= 6:
        attributes.append(3)  # abstract sockets and signals beyond the sandbox
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = _syscall(_CREATE_RULESET, packed, len(packed), 0)
    _grant(ruleset, box, handled & ~_SPECIAL)
    for path in readable():
        _grant(ruleset, path, _READ_FILE | _READ_DIR)
    _grant(ruleset, Path(os.devnull), _READ_FILE | _WRITE_FILE | handled & _TRUNCATE)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    """Put this process under the ruleset for good. Needs no_new_privs."""
    _syscall(_RESTRICT_SELF, ruleset, 0)


def readable() -> Iterator[Path]:
    """The standard library without site-packages, shared libraries, time zones, random bytes."""
    for folder in map(Path, sys.path):
        if folder.is_dir():
            yield from (p for p in folder.iterdir() if not p.name.endswith("-packages"))
        elif folder.exists():
            yield folder
    yield from Path(sys.base_prefix, "lib").glob("*.so*")
    for name in (
        "/lib /lib64 /usr/lib /usr/lib64 /usr/share/zoneinfo /etc/localtime /etc/ld.so.cache"
        " /dev/zero /dev/random /dev/urandom"
    ).split():
        yield Path(name)


def _grant(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not path.is_dir():
        rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
    try:
        _syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _tmpfs(folder: Path, flags: int, options: bytes) -> None:
    _call("mount", b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(flags), options)


def _prctl(option: int, value: int) -> None:
    rest = (ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    _call("prctl", option, ctypes.c_ulong(value), *rest)


def _syscall(number: int, *arguments: object) -> int:
    # A plain int would be passed as 32 bits, with rubbish above.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _call("syscall", ctypes.c_long(number), *wide)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_LIBC, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
