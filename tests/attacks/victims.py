"""Victims for the attacks, and how one attack is run and judged from outside the sandbox.

The victims belong to the same user as the attacker, so that what holds is the sandbox and not file modes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from workers.sandbox.keeper import keeper
from workers.sandbox.policy import Layers, make_plan, next_uid
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxBackend, SandboxResult, SandboxSettings, SandboxStatus

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = SandboxSettings(
    wall_seconds=1.2,
    cpu_seconds=1.0,
    memory_mb=256,
    scratch_mb=16,
    output_kb=64,
    max_threads=24,
    max_files=1000,
    num_warm=1,
)
PAUSE_SECONDS = 0.1
"""Between the two cells of an attack, in seconds: long enough to see that one went on."""
WATCHED_SIGNALS = (signal.SIGUSR1, signal.SIGIO)

MODULES = "ctypes errno mmap os resource signal socket struct sys threading time".split()  # noqa: SIM905
PRELUDE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
x86 = os.uname().machine == "x86_64"

def reached(what=""):
    print("REACHED", what, flush=True)

def sysc(numbers, *values):
    number = numbers if isinstance(numbers, int) else numbers[0 if x86 else 1]
    values = [ctypes.c_long(v) if isinstance(v, int) else v for v in values]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@dataclass(frozen=True)
class Attack:
    """A program, bounded in itself, that tries one thing; it prints REACHED when it got there."""

    name: str
    code: str
    statuses: frozenset[SandboxStatus] = frozenset()
    """How it has to end; empty where only the aim counts."""
    later: str = ""
    """A second cell of the same session, after a pause: for what goes on when the first one has ended."""

    @property
    def waits(self) -> bool:
        """Whether only a limit on time ends it; such ones are run side by side."""
        return SandboxStatus.WALL_LIMIT in self.statuses


@dataclass
class Victims:
    """What attacks aim at, and the traces that a hit leaves."""

    sandbox: Sandbox
    tag: str
    aim: dict[str, Any]
    listeners: dict[str, socket.socket]
    victim: subprocess.Popen[bytes]
    folder: Path
    signals: list[int] = field(default_factory=list)
    _waited: dict[str, SandboxResult] = field(default_factory=dict)

    def wait_for(self, attacks: Sequence[Attack]) -> None:
        """Run those that only a limit on time ends, all at once: `attack` then judges what became of each."""
        waiting = [attack for attack in attacks if attack.waits]
        with ThreadPoolExecutor(max(len(waiting), 1)) as pool:
            results = pool.map(self._run, waiting)
            self._waited = dict(zip((attack.name for attack in waiting), results, strict=True))

    def _run(self, attack: Attack) -> SandboxResult:
        wanted = [name for name in MODULES if re.search(rf"\b{name}\b", attack.code + attack.later)]
        imports = (
            f"import {', '.join(wanted)}" if wanted else ""
        )  # each costs every attack its time
        prelude = f"aim = {self.aim!r}\n{imports}\n{PRELUDE}\n"
        if not attack.later:
            return self.sandbox.run(f"{prelude}{attack.code}\n")
        session = self.sandbox.open_session()
        try:
            first = session.run(f"{prelude}{attack.code}\n")
            started = time.monotonic()
            time.sleep(PAUSE_SECONDS)
            pause = (started, time.monotonic())
            second = session.run(f"pause = {pause}\n{attack.later}")
        finally:
            session.close()
        return dataclasses.replace(second, stdout=first.stdout + second.stdout)

    def attack(self, attack: Attack) -> tuple[SandboxResult, list[str]]:
        """Run one attack; returns its outcome and what it achieved, empty when the sandbox held."""
        before = self._files()
        result = self._waited.pop(attack.name, None) or self._run(attack)
        found = []
        if "REACHED" in result.stdout:
            found.append(result.stdout[result.stdout.index("REACHED") :].splitlines()[0][:80])
        found += [f"{name} was contacted" for name in self._contacts()]
        if self._files() != before:
            found.append("files outside changed")
            self._repair()
        if self.signals:
            found.append(f"the parent got signals {self.signals}")
            self.signals.clear()
        if self.victim.poll() is not None:
            found.append("the victim died")
        if survivors := tagged(self.tag) - ready(self.sandbox):
            found.append(f"processes {sorted(survivors)} survived")
            for pid in survivors:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if result.status is SandboxStatus.START_FAILED:
            found.append(f"start failed: {result.error}")
        if attack.statuses and result.status not in attack.statuses:
            found.append(f"ended as {result.status.value}: {result.error[-200:]}")
        return result, found

    def _contacts(self) -> list[str]:
        hit = []
        for name, listener in self.listeners.items():
            try:
                if listener.type == socket.SOCK_DGRAM:
                    listener.recv(100)
                else:
                    listener.accept()[0].close()
            except BlockingIOError:
                continue
            hit.append(name)
        return hit

    def _files(self) -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in sorted(self.folder.iterdir()):
            s = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[path.name] = (s.st_mode, s.st_uid, s.st_mtime_ns, content)
        stray = Path("/var/tmp") / self.aim["stray"]
        return found | ({"stray": (0, 0, 0, b"")} if stray.exists() else {})

    def _repair(self) -> None:
        (Path("/var/tmp") / self.aim["stray"]).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                path.rmdir()
            elif path.name not in ("secret", "socket", "datagrams"):
                path.unlink()
        make_secret(self.folder, self.aim["uid"])


def tagged(tag: str) -> set[int]:
    """Processes on this machine that carry the tag of a sandbox in their command."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                # bwrap keeps the command of what it runs among its own words
                if tag.encode() in words:
                    found.add(int(entry.name))
    return found


def ready(sandbox: Sandbox) -> set[int]:
    """Processes that wait for the next execution, with their parents inside bwrap."""
    assert sandbox._pool is not None
    return descendants({future.result().pid for future in sandbox._pool._warm})


def descendants(pids: set[int]) -> set[int]:
    """These processes, their children, and so on."""
    found = set(pids)
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            children = [int(word) for word in listing.read_text(encoding="ascii").split()]
            found.update(children)
            waiting += children
    return found


def make_secret(folder: Path, uid: int) -> None:
    secret = folder / "secret"
    secret.unlink(missing_ok=True)
    secret.write_text("the-secret", encoding="ascii")
    os.chown(secret, uid, -1)
    secret.chmod(0o600)


@contextmanager
def open_victims(
    backend: SandboxBackend,
    layers: Layers | None = None,
    settings: SandboxSettings = SETTINGS,
) -> Iterator[Victims]:
    """Victims, and a sandbox with the given layers whose code runs as the victims' user."""
    tag = secrets.token_hex(8)
    uid = next_uid()
    user = os.getuid() if uid is None else uid
    plan = make_plan(backend, settings, tag, layers)
    plan = type(plan)(**{**vars(plan), "uid": uid})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pawl-victims-")))
        folder.chmod(0o777)
        make_secret(folder, user)
        listeners = _listeners(stack, folder)
        inherited = os.open(folder / "secret", os.O_RDONLY)
        stack.callback(os.close, inherited)
        os.set_inheritable(inherited, True)
        os.environ["PAWL_ARENA_SECRET"] = "the-secret"
        stack.callback(os.environ.pop, "PAWL_ARENA_SECRET", None)
        victim = stack.enter_context(_victim(uid))
        aim = {
            "uid": user,
            "folder": str(folder),
            "secret": str(folder / "secret"),
            "socket": str(folder / "socket"),
            "datagrams": str(folder / "datagrams"),
            "abstract": abstract_name(listeners["an abstract Unix socket"]),
            "abstract_datagrams": abstract_name(listeners["an abstract datagram socket"]),
            "tcp": listeners["a TCP port"].getsockname()[1],
            "udp": listeners["a UDP port"].getsockname()[1],
            "parent": os.getpid(),
            "keeper": keeper().pid,
            "victim": victim.pid,
            "root": str(ROOT),
            "stray": f"pawl-{tag}",
            "memory_mb": settings.memory_mb,
            "scratch_mb": settings.scratch_mb,
            "max_threads": settings.max_threads,
            "many": 15 * settings.max_files
            if backend == "bwrap"
            else 3,  # else they are the machine's
        }
        sandbox = stack.enter_context(Sandbox(settings, plan=plan))
        sandbox.prepare()
        victims = Victims(sandbox, tag, aim, listeners, victim, folder)
        stack.enter_context(_watched_signals(victims.signals))
        yield victims
    left = tagged(tag)
    assert not left, f"processes {left} outlived their sandbox"


def _listeners(stack: contextlib.ExitStack, folder: Path) -> dict[str, socket.socket]:
    listeners = {
        "a TCP port": socket.socket(socket.AF_INET),
        "a UDP port": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "an abstract Unix socket": socket.socket(socket.AF_UNIX),
        "a Unix socket": socket.socket(socket.AF_UNIX),
        "an abstract datagram socket": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "a datagram socket": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    }
    addresses: Mapping[str, Any] = {
        "a TCP port": ("127.0.0.1", 0),
        "a UDP port": ("127.0.0.1", 0),
        "an abstract Unix socket": "\0pawl-" + secrets.token_hex(8),
        "a Unix socket": str(folder / "socket"),
        "an abstract datagram socket": "\0pawl-" + secrets.token_hex(8),
        "a datagram socket": str(folder / "datagrams"),
    }
    for name, listener in listeners.items():
        stack.enter_context(listener)
        listener.bind(addresses[name])
        listener.setblocking(False)
        if listener.type == socket.SOCK_STREAM:
            listener.listen()
    for name in ("socket", "datagrams"):
        (folder / name).chmod(0o777)
    return listeners


def abstract_name(listener: socket.socket) -> str:
    name: bytes = listener.getsockname()
    return name.decode("ascii")[1:]


@contextmanager
def _victim(uid: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the attacker's user that holds a secret in its environment and memory."""
    victim = subprocess.Popen(
        ["/bin/sleep", "600"], env={"VICTIM_SECRET": "the-secret"}, user=uid, cwd="/"
    )
    try:
        yield victim
    finally:
        victim.kill()
        victim.wait()


@contextmanager
def _watched_signals(seen: list[int]) -> Iterator[None]:
    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    previous = {number: signal.signal(number, note) for number in WATCHED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def available() -> list[SandboxBackend]:
    """Backends that can start here at all; whether they hold is what the attacks show."""
    if sys.platform != "linux":
        return []
    found: list[SandboxBackend] = []
    for backend in ("bwrap", "landlock"):
        plan = make_plan(backend, SETTINGS, "probe")
        with Sandbox(SETTINGS, plan=plan) as sandbox:
            if sandbox.run("").status is SandboxStatus.OK:
                found.append(backend)
    return found
