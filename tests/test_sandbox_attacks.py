"""Every hostile program against the sandbox, also where some of its layers are missing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from sandbox_attacks import GROUPS, program

from rftkit.sandbox import Result, Sandbox
from rftkit.sandbox.inside.confine import Confinement
from rftkit.sandbox.inside.folder import empty
from rftkit.sandbox.inside.seccomp import filter_program
from rftkit.sandbox.windows import Limits

ALL = ("rlimits", "namespaces", "no_new_privs", "landlock", "seccomp", "bubblewrap", "seatbelt")
VARIANTS: dict[str, dict[str, Any]] = {
    "every layer": {},
    "without seccomp": {"without": ("seccomp",)},
    "without namespaces": {"without": ("namespaces", "bubblewrap")},
    "without Landlock": {"without": ("landlock", "bubblewrap")},
    "bubblewrap for Landlock": {"without": ("landlock",)},
    "seccomp alone": {"without": tuple(layer for layer in ALL if layer != "seccomp")},
    "no layer": {"without": ALL},
    "one program a worker": {"fork": False},
}
# Run in each variant; the other groups where the variant says that it stops them.
ALWAYS = ("processes", "exit", "forge", "tamper")
SLOW_VARIANT = "one program a worker"  # ALWAYS is enough there
SECONDS = {"loop": 0.5, "flood": 0.5, "recursion": 1.0, "processes": 0.7}
CALLS = {"x86_64": (41, 234, 250), "aarch64": (198, 131, 219)}  # socket, tgkill, keyctl
TOKEN = f"token-{secrets.token_hex(16)}"
EXPECT = {"read": "SECRET", "gadgets": "SECRET", "forge": TOKEN, "tamper": TOKEN}


class World:
    """What the attacks aim at. `damage()` says what they did to it, by harm."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.secret, self.outside = folder / "secret", folder / "outside"
        self.secret.write_text("SECRET")
        self.outside.mkdir()
        self.shared = Path(f"/dev/shm/{secrets.token_hex(8)}")
        idle = [sys.executable, "-I", "-S", "-c", "input()"]
        self.victim = subprocess.Popen(idle, stdin=subprocess.PIPE, start_new_session=True)
        self.signals: list[int] = []
        if hasattr(signal, "SIGUSR1"):
            self._former = signal.signal(signal.SIGUSR1, lambda n, _: self.signals.append(n))
        self.listeners = {"PORT": socket.create_server(("127.0.0.1", 0))}
        self._listen("UDP_PORT", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        if hasattr(socket, "AF_UNIX"):
            self._listen("UNIX", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "s"))
            self._listen("DATAGRAMS", socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "d"))
        if sys.platform == "linux":
            abstract = f"\0{secrets.token_hex(8)}"
            self._listen("ABSTRACT", socket.AF_UNIX, socket.SOCK_STREAM, abstract)
        for listener in self.listeners.values():
            listener.setblocking(False)
        self._heap = b"x" * 99

    def targets(self, confined: bool) -> dict[str, object]:
        """Names that the attacks use."""
        calls = CALLS.get(platform.machine(), (-1, -1, -1))
        return {
            **dict(zip(("SOCKET_CALL", "TGKILL_CALL", "KEYCTL_CALL"), calls, strict=True)),
            **{name: _address(listener) for name, listener in self.listeners.items()},
            "SECRET": str(self.secret),
            "OUTSIDE": str(self.outside),
            "SHARED": str(self.shared),
            "PARENT": os.getpid(),
            "VICTIM": self.victim.pid,
            "GROUP": self.victim.pid,
            "HEAP": id(self._heap),
            "CONFINED": confined,
        }

    def damage(self) -> dict[str, list[str]]:
        writes = [f"{path.name} appeared" for path in self.outside.iterdir()]
        if not self.secret.exists() or self.secret.read_text() != "SECRET":
            writes.append("the secret changed")
        elif self.secret.stat().st_mode & 0o7777 == 0o777 or self.secret.stat().st_mtime == 0:
            writes.append("the secret's metadata changed")
        if self.shared.exists():
            writes.append("shared memory appeared")
        signals = [f"signal {number} to the parent" for number in self.signals]
        if self.victim.poll() is not None or psutil.Process(self.victim.pid).nice() == 19:
            signals.append("the victim was hit")
        network = [f"{n} was reached" for n, s in self.listeners.items() if _reached(s)]
        return {
            "changing files outside": writes,
            "signals to other processes": signals,
            "network": network,
        }

    def close(self) -> None:
        self.victim.communicate()
        for listener in self.listeners.values():
            listener.close()
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, self._former)
        self.shared.unlink(missing_ok=True)

    def _listen(self, name: str, family: int, kind: int, address: Any) -> None:
        self.listeners[name] = socket.socket(family, kind)
        self.listeners[name].bind(address)
        if kind == socket.SOCK_STREAM:
            self.listeners[name].listen()


def _address(listener: socket.socket) -> object:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return name[1]
    return name.decode() if isinstance(name, bytes) else name


def _reached(listener: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        if listener.type == socket.SOCK_DGRAM:
            listener.recv(9)
        else:
            listener.accept()[0].close()
        return True
    return False


@dataclass
class Campaign:
    """What came of all attacks in one variant."""

    layers: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, Result]] = field(default_factory=dict)
    damage: dict[str, list[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def stops(self, harm: str | None) -> bool:
        return harm is None or self.layers["stopped"].get(harm, harm in self.layers["in_force"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """One folder for the world, one that holds nothing but the sandbox's temp folders."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it always is
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory() as world, tempfile.TemporaryDirectory() as temp:
        tempfile.tempdir = str(Path(temp).resolve())
        try:
            yield Path(world).resolve(), Path(temp).resolve()
        finally:
            tempfile.tempdir = former


pytestmark = pytest.mark.filterwarnings("ignore:the sandbox is weak")


@pytest.fixture(scope="module", params=VARIANTS)
def campaign(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> Campaign:
    variant = request.param
    result = Campaign()
    with tempfile.TemporaryDirectory(dir=folders[0]) as place, left_over(folders[1], result.left):
        world = World(Path(place))
        with Sandbox(2, **VARIANTS[variant]) as box:
            result.layers = box.layers()
            for group, (harm, attacks) in GROUPS.items():
                stopped = harm and variant != SLOW_VARIANT and result.stops(harm)
                if group in ALWAYS or stopped or variant == "every layer":
                    result.results[group] = run(box, world, group, attacks, result)
        result.damage = world.damage()
        world.close()
    return result


def run(
    box: Sandbox, world: World, group: str, attacks: dict[str, str], so_far: Campaign
) -> dict[str, Result]:
    targets = world.targets(so_far.stops("signals to other processes"))
    test = [{"call": "f()", "expect": repr(EXPECT.get(group, "harm"))}]
    jobs = [(program(body, targets), test) for body in attacks.values()]
    results = box.run_many(jobs, timeout=SECONDS.get(group, 5.0))
    return dict(zip(attacks, results, strict=True))


@contextlib.contextmanager
def left_over(temp: Path, found: list[str]) -> Iterator[None]:
    """Adds to `found` each thread, descriptor, file and process that outlives the block."""
    me = psutil.Process()
    threads, descriptors = threading.active_count(), count_descriptors(me)
    yield
    found += ["a thread"] * (threading.active_count() - threads)
    found += ["a descriptor"] * (count_descriptors(me) - descriptors)
    found += [str(path) for path in temp.iterdir()]
    for process in psutil.process_iter():
        # OSError: psutil 7.0 does not translate all that a process meets that ends meanwhile
        with contextlib.suppress(psutil.Error, OSError):
            if str(temp) in f"{process.cwd()} {process.cmdline()}":
                found.append(str(process))


def count_descriptors(process: psutil.Process) -> int:
    return process.num_handles() if sys.platform == "win32" else process.num_fds()


@pytest.mark.parametrize("group", GROUPS)
def test_no_attack_succeeds(campaign: Campaign, group: str):
    harm, attacks = GROUPS[group]
    if campaign.stops(harm):
        results = campaign.results.get(group, {})
        assert not [name for name, result in results.items() if result.passed]
        assert len(results) in (len(attacks), 0)
    else:
        assert harm == "seccomp" or harm in campaign.layers["not_covered"]


def test_nothing_outside_is_touched(campaign: Campaign):
    stopped = [damage for harm, damage in campaign.damage.items() if campaign.stops(harm)]
    assert not list(itertools.chain(*stopped))


def test_nothing_is_left_over(campaign: Campaign):
    assert not campaign.left


def test_enough_attacks_are_tried():
    assert sum(len(attacks) for _, attacks in GROUPS.values()) >= 150


def test_layers_are_told_as_tried():
    with Sandbox(1) as box:
        layers = box.layers()
    assert json.loads(json.dumps(layers)) == layers
    assert not set(layers["in_force"]) & set(layers["absent"])
    assert [h for h, stopped in layers["stopped"].items() if not stopped] == [
        line for line in layers["not_covered"] if line in layers["stopped"]
    ]
    if {"namespaces", "landlock", "seccomp"} <= set(layers["in_force"]):
        assert all(layers["stopped"].values())


def test_without_layers_nothing_is_claimed():
    with Sandbox(1, without=ALL) as box, pytest.warns(RuntimeWarning, match="weak on this machine"):
        layers = box.layers()
    assert layers["in_force"] == []
    assert not any(layers["stopped"].values())
    assert set(layers["stopped"]) < set(layers["not_covered"])


@pytest.mark.parametrize("fork", [True, False] if hasattr(os, "fork") else [False])
def test_a_folder_that_a_program_locked_ends_neither_worker_nor_caller(fork: bool) -> None:
    lock = "import os\nopen('x', 'w')\nos.makedirs('a/b')\nos.chmod('a', 0)\nos.chmod('.', 0)\n"
    tests = [{"call": "f()", "expect": "1"}]
    with Sandbox(1, without=ALL, fork=fork) as box, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            assert box.run_tests(f"{lock}def f(): return 1", tests).passed == 1
        assert box.run_tests("def f(): return 1", tests).passed == 1


def test_a_locked_folder_is_emptied(tmp_path: Path) -> None:
    """Permissions do not hold back root, so what was given back is looked at as well."""
    box = tmp_path / "box"
    (box / "a" / "b").mkdir(parents=True)
    (box / "x").touch(0o400)
    (box / "a").chmod(0)
    box.chmod(0)
    empty(box)
    assert not list(box.iterdir())
    assert box.stat().st_mode & 0o700 == 0o700


@pytest.mark.skipif(os.name == "nt", reason="another program for each system")
def test_a_program_that_confines_is_found_wherever_the_path_has_it(monkeypatch, tmp_path) -> None:
    """And where it does not start, the worker goes without."""
    program = tmp_path / "bwrap"
    program.write_text("#!/no/such/shell\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sandbox(1, without=("namespaces", "seatbelt")) as box, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert box.run_tests("def f(): return 1", [{"call": "f()", "expect": "1"}]).passed == 1
        assert "bwrap" in box.layers()["absent"]["bubblewrap"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a worker of its own has no layers to lose")
def test_a_layer_that_fails_after_its_trial_stops_the_worker(monkeypatch, tmp_path):
    confinement = Confinement(tmp_path, writes_confined=False)
    monkeypatch.setattr("rftkit.sandbox.inside.confine.Rlimits.enter", refuse)
    with pytest.raises(OSError, match="refused"):
        confinement.enter(["rlimits"], [])


def refuse(layer: object) -> None:
    raise OSError("refused")


@pytest.mark.parametrize(
    ("machine", "calls"),
    [
        ("x86_64", {"read": 0, "socket": 41, "clone": 56, "fork": 57, "openat": 257, "kill": 62}),
        ("aarch64", {"read": 63, "socket": 198, "clone": 220, "openat": 56, "kill": 129}),
    ],
)
def test_the_seccomp_filter_on(machine: str, calls: dict[str, int]):
    allow, eperm, enosys, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    audit = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def verdict(name: str, *arguments: int, writes: bool = True, audit: int = audit) -> int:
        number = calls.get(name, 435)
        return interpret(filter_program(machine, writes), number, audit, arguments)

    assert verdict("read") == allow
    assert verdict("read", audit=0x40000003) == kill
    assert verdict("clone3") == enosys
    assert {verdict(name) for name in ("socket", "kill", "clone")} == {eperm}
    assert verdict("clone", 0x3D0F00) == allow
    read_only, write, create, truncate = 0, 0o1, 0o101, 0o1000
    assert verdict("openat", 0, 0, read_only) == verdict("openat", 0, 0, create) == allow
    assert verdict("openat", 0, 0, truncate) == verdict("openat", 0, 0, 3) == eperm
    assert verdict("openat", 0, 0, read_only, writes=False) == allow
    assert verdict("openat", 0, 0, write, writes=False) == eperm


def interpret(code: bytes, number: int, audit: int, arguments: tuple[int, ...]) -> int:
    """A classic BPF machine, for the instructions that the filter uses."""
    data = {0: number, 4: audit, **{16 + 8 * i: a for i, a in enumerate((*arguments, 0, 0, 0, 0))}}
    accumulator = position = 0
    while True:
        at = code[8 * position : 8 * position + 8]
        operation, constant = int.from_bytes(at[:2], "little"), int.from_bytes(at[4:], "little")
        position += 1
        if operation == 0x06:
            return constant
        if operation == 0x20:
            accumulator = data[constant]
        elif operation == 0x54:
            accumulator &= constant
        else:
            tests = {0x15: accumulator == constant, 0x35: accumulator >= constant}
            position += at[2] if tests.get(operation, accumulator & constant) else at[3]


@pytest.mark.skipif(sys.maxsize < 2**32, reason="the size on 64-bit Windows")
def test_the_job_object_limits_have_the_size_that_windows_wants():
    import ctypes

    assert ctypes.sizeof(Limits) == 144


@pytest.mark.soak
def test_nothing_is_left_after_a_thousand_hostile_programs(folders: tuple[Path, Path]):
    left: list[str] = []
    with tempfile.TemporaryDirectory(dir=folders[0]) as place, left_over(folders[1], left):
        world = World(Path(place))
        with Sandbox(2) as box:
            targets = world.targets(confined=all(box.layers()["stopped"].values()))
            bodies = [body for _, attacks in GROUPS.values() for body in attacks.values()]
            test = [{"call": "f()", "expect": repr(TOKEN)}]
            bodies = itertools.islice(itertools.cycle(bodies), 1000)
            jobs = [(program(body, targets), test) for body in bodies]
            assert not sum(result.passed for result in box.run_many(jobs, timeout=0.4))
        assert not any(world.damage().values())
        world.close()
    assert not left
