"""A seccomp filter: the system calls that a running Python program needs, and no others.

No process creation, exec, sockets (but a stream `socketpair`, which asyncio needs), signals,
ptrace, mounts, keys, shared memory, io_uring or chmod. Threads stay possible.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Iterator

# name, number on x86_64, number on aarch64 (- where it has none)
_ALLOWED = """
read 0 63
write 1 64
readv 19 65
writev 20 66
pread64 17 67
pwrite64 18 68
preadv 295 69
pwritev 296 70
lseek 8 62
close 3 57
close_range 436 436
dup 32 23
dup2 33 -
dup3 292 24
pipe 22 -
pipe2 293 59
sendfile 40 71
fadvise64 221 223
stat 4 -
fstat 5 80
lstat 6 -
newfstatat 262 79
statx 332 291
access 21 -
faccessat 269 48
faccessat2 439 439
readlink 89 -
readlinkat 267 78
getdents64 217 61
getcwd 79 17
chdir 80 49
fchdir 81 50
umask 95 166
statfs 137 43
fstatfs 138 44
mmap 9 222
munmap 11 215
mremap 25 216
mprotect 10 226
madvise 28 233
brk 12 214
futex 202 98
set_robust_list 273 99
rseq 334 293
sched_yield 24 124
sched_getaffinity 204 123
gettid 186 178
getpid 39 172
getppid 110 173
getuid 102 174
geteuid 107 175
getgid 104 176
getegid 108 177
getgroups 115 158
getpgrp 111 -
getpgid 121 155
getsid 124 156
uname 63 160
sysinfo 99 179
getrusage 98 165
times 100 153
getcpu 309 168
getrlimit 97 163
setrlimit 160 164
getpriority 140 141
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
sigaltstack 131 132
rt_sigpending 127 136
rt_sigtimedwait 128 137
rt_sigsuspend 130 133
pause 34 -
restart_syscall 219 128
alarm 37 -
getitimer 36 102
setitimer 38 103
clock_gettime 228 113
clock_getres 229 114
clock_nanosleep 230 115
nanosleep 35 101
gettimeofday 96 169
time 201 -
poll 7 -
ppoll 271 73
select 23 -
pselect6 270 72
epoll_create1 291 20
epoll_ctl 233 21
epoll_wait 232 -
epoll_pwait 281 22
eventfd2 290 19
sendto 44 206
recvfrom 45 207
shutdown 48 210
getrandom 318 278
wait4 61 260
waitid 247 95
exit 60 93
exit_group 231 94
"""
# Landlock or another layer keeps these inside the temp folder; without one they stay denied.
_ALLOWED_WRITES = """
ftruncate 77 46
fallocate 285 47
fsync 74 82
fdatasync 75 83
mkdir 83 -
mkdirat 258 34
rmdir 84 -
unlink 87 -
unlinkat 263 35
rename 82 -
renameat 264 38
renameat2 316 276
"""
# Allowed for some arguments only: see _rules.
_GUARDED = """
clone 56 220
fcntl 72 25
ioctl 16 29
open 2 -
openat 257 56
prctl 157 167
prlimit64 302 261
socketpair 53 199
"""

_LIBC = ctypes.CDLL(None, use_errno=True)
_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column, AUDIT_ARCH
_FIRST_UNIFIED = 424  # newer calls: libc falls back to older ones on ENOSYS, not on EPERM

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW: _Instruction = (_RETURN, 0, 0, 0x7FFF0000)
_KILL: _Instruction = (_RETURN, 0, 0, 0x80000000)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def filter_program(machine: str, may_write: bool) -> bytes:
    """The filter as an array of `struct sock_filter`. `may_write` permits file changes at all.

    Raises OSError on a machine whose system-call numbers are not listed here.
    """
    if machine not in _ARCHITECTURES or sys.byteorder != "little" or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no system-call table for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        _KILL,  # a 32-bit call would slip through a table of 64-bit numbers
        (_LOAD, 0, 0, 0),
    ]
    for _, number in _numbers(_ALLOWED + (_ALLOWED_WRITES if may_write else ""), column):
        program += [(_EQUAL, 0, 1, number), _ALLOW]
    rules = _rules(may_write)
    for name, number in _numbers(_GUARDED, column):
        program += [(_EQUAL, 0, len(rules[name]), number), *rules[name]]
    program += [(_AT_LEAST, 0, 1, _FIRST_UNIFIED), _deny(errno.ENOSYS), _deny(errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install(program: bytes) -> None:
    """Put this thread, and all that it starts, under the filter. Needs no_new_privs."""
    code = ctypes.create_string_buffer(program, len(program))

    header = _Program(len(program) // 8, ctypes.addressof(code))
    set_seccomp, mode_filter = 22, 2
    arguments = (ctypes.c_ulong(mode_filter), ctypes.byref(header), ctypes.c_ulong(0))
    if _LIBC.prctl(set_seccomp, *arguments, ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")


def machine() -> str:
    """The machine name as `filter_program` wants it."""
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(name := platform.machine().lower(), name)


def _numbers(table: str, column: int) -> Iterator[tuple[str, int]]:
    for line in table.split("\n"):
        fields = line.split()
        if fields and fields[column] != "-":
            yield fields[0], int(fields[column])


def _rules(may_write: bool) -> dict[str, list[_Instruction]]:
    """What follows a matching number; each block ends in a verdict."""
    eperm = _deny(errno.EPERM)
    thread = 0x10000  # CLONE_THREAD
    # Not F_SETOWN, F_SETSIG: with them the kernel sends any signal to any process of the user.
    locks_and_flags = [0, 1, 2, 3, 4, 5, 6, 7, 1030]
    # Not TIOCSTI, FIOSETOWN and the like: terminals and signals again.
    terminal_or_blocking = [0x5401, 0x541B, 0x5421, 0x5450, 0x5451]
    return {
        "clone": [_argument(0), (_ANY_BIT, 0, 1, thread), _ALLOW, eperm],
        "fcntl": _one_of(1, locks_and_flags, eperm),
        "ioctl": _one_of(1, terminal_or_blocking, _deny(errno.ENOTTY)),
        "open": _open(1, may_write),
        "openat": _open(2, may_write),
        "prctl": _one_of(0, [15, 16], eperm),  # a thread's name
        "prlimit64": _one_of(0, [0], eperm),  # its own limits only
        "socketpair": [
            _argument(0),
            (_EQUAL, 1, 0, 1),  # AF_UNIX
            eperm,
            _argument(1),
            (_AND, 0, 0, 0xF),
            (_EQUAL, 0, 1, 1),  # SOCK_STREAM: a datagram socket can reach any address
            _ALLOW,
            eperm,
        ],
    }


def _open(flags: int, may_write: bool) -> list[_Instruction]:
    access, create, truncate = 0o3, 0o100, 0o1000
    eperm = _deny(errno.EPERM)
    if not may_write:
        return [_argument(flags), (_ANY_BIT, 0, 1, access | create | truncate), eperm, _ALLOW]
    return [
        _argument(flags),
        (_AND, 0, 0, access | truncate),
        (_EQUAL, 3, 0, truncate),  # read-only, yet empties the file: old Landlock misses it
        (_EQUAL, 2, 0, access),  # access mode 3: no check by Landlock
        (_EQUAL, 1, 0, access | truncate),
        _ALLOW,
        eperm,
    ]


def _one_of(argument: int, values: list[int], otherwise: _Instruction) -> list[_Instruction]:
    block = [_argument(argument)]
    for value in values:
        block += [(_EQUAL, 0, 1, value), _ALLOW]
    return [*block, otherwise]


def _argument(index: int) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index)  # low half, little-endian


def _deny(code: int) -> _Instruction:
    return (_RETURN, 0, 0, 0x00050000 | code)
