"""The plan of a contained process: bwrap's arguments, the launcher's policy, and their digest."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from policies.base.errors import SandboxUnavailableError, explain
from workers.sandbox.interpreter import (
    ENVIRONMENT,
    FLAGS,
    Interpreter,
    Packages,
    devices,
    dropped,
    find_interpreter,
    find_packages,
    first_uid,
)
from workers.sandbox.process import BOOT, Budget, frame
from workers.sandbox.seccomp import seccomp_program
from workers.sandbox.settings import SandboxBackend, SandboxSettings

MEGABYTE = 2**20
_serial = itertools.count()


@dataclass(frozen=True)
class Layers:
    """The layers that are put on; tests take one off to see that attacks then succeed."""

    landlock: bool = True
    seccomp: bool = True
    limits: bool = True
    watch: bool = True
    """What the worker keeps from outside: processor time, number of files, the stop between two cells."""


@cache
def bwrap_path() -> str:
    """Tell where bubblewrap is, with the options that we need.

    Raises:
        SandboxUnavailableError: it is not installed, or too old.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxUnavailableError("bwrap is not installed (apt-get install bubblewrap)")
    done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=30, check=False)
    for option in ("--size", "--clearenv", "--disable-userns", "--info-fd"):
        if option not in done.stdout + done.stderr:
            raise SandboxUnavailableError(f"{path} is too old: it has no {option} (0.8 has)")
    return path


@dataclass(frozen=True)
class ContainmentPlan:
    """Everything that decides how one backend contains a process."""

    backend: SandboxBackend
    settings: SandboxSettings
    interpreter: Interpreter
    packages: Packages
    layers: Layers
    tag: str
    """Last argument of every process of one sandbox object, so that they can be told apart."""
    uid: int | None = None
    """As root: always this user, instead of a new one each time. For tests with victims of the same user."""

    def command(self, uid: int | None) -> Callable[[int, int], list[str]]:
        """Tell how to start the process as user `uid`, told the descriptors for control and for bwrap's report."""

        def build(control: int, info: int) -> list[str]:
            python = [self.interpreter.executable, *FLAGS, "-c", BOOT, str(control), self.tag]
            outer = [] if self.backend != "bwrap" else [bwrap_path(), *self._bwrap(info), "--"]
            return [*dropped(uid), *outer, *python]

        return build

    def hello(self, parent: int) -> bytes:
        """The launcher and its policy, as a child of process `parent` reads them first."""
        code = self.interpreter.launcher
        policy = self._policy() | {"parent": 1 if self.backend == "bwrap" else parent}
        return b"%d\n%b%b" % (len(code), code, frame(policy))

    @property
    def digest(self) -> str:
        """SHA-256 of all that a verdict's containment depends on, but not on process numbers or tags."""
        parts = [
            self.backend,
            self.settings.model_dump_json(exclude={"num_warm"}),
            str(self.interpreter.version),
            hashlib.sha256(Path(__file__).with_name("launcher.py").read_bytes()).hexdigest(),
            json.dumps(self._policy(), sort_keys=True),
            json.dumps(self._bwrap(0) if self.backend == "bwrap" else []),
        ]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    @property
    def counts_threads(self) -> bool:
        """Tell whether the kernel counts threads per sandbox.

        It counts per user: that is exact in a namespace, or for a user that serves one sandbox only. Anyone
        else's count would include what else the user runs; then the parent counts.
        """
        return self.backend == "bwrap" or os.getuid() == 0

    def budget(self) -> Budget:
        """Return what one job may take, as far as it is kept from outside."""
        s = self.settings
        watched = self.layers.watch
        return Budget(
            wall_seconds=s.wall_seconds,
            output_bytes=s.output_kb * 1024,
            max_threads=None if self.counts_threads else s.max_threads,
            cpu_seconds=s.cpu_seconds if watched else None,
            max_files=s.max_files if watched else None,
            freezes=watched,
        )

    def _policy(self) -> dict[str, Any]:
        s = self.settings
        inside = self.backend == "bwrap"
        contained = self.backend != "none"
        filtered = self.layers.seccomp and contained
        limits = {
            "RLIMIT_AS": s.memory_mb * MEGABYTE,
            "RLIMIT_FSIZE": s.scratch_mb * MEGABYTE,
            "RLIMIT_NOFILE": num_descriptors(s),
            "RLIMIT_STACK": 8 * MEGABYTE,
            "RLIMIT_CORE": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_SIGPENDING": 64,
            "RLIMIT_NICE": 0,
            "RLIMIT_RTPRIO": 0,
        }
        if self.counts_threads and contained:
            limits["RLIMIT_NPROC"] = s.max_threads + (1 if inside else 0)  # 1: bwrap's own
        return {
            "folder": "/tmp" if inside else "/",  # nosec B108 # a private mount
            "watched": "/tmp" if inside else None,  # nosec B108 # a private mount
            "limits": limits if self.layers.limits else {},
            "landlock": self.layers.landlock and contained,
            "readable": [
                *self.interpreter.library,
                *self.packages.readable,
                *(devices()),
            ],
            "writable": ["/tmp", "/dev/null"] if inside else ["/dev/null"],  # nosec B108 # a private mount
            "packages": dict(self.packages.modules),
            "seccomp": seccomp_program(own_files=inside) if filtered else None,
        }

    def _bwrap(self, info: int) -> list[str]:
        arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
        arguments += ["--new-session", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534"]
        arguments += ["--hostname", "sandbox", "--info-fd", str(info), "--clearenv"]
        for name, value in ENVIRONMENT.items():
            arguments += ["--setenv", name, value]
        # First: what is bound below lies on top of it, also where Python or its packages are installed below /tmp.
        arguments += ["--size", str(self.settings.scratch_mb * MEGABYTE), "--tmpfs", "/tmp"]  # nosec B108 # private
        seen: list[str] = []
        for path in self.interpreter.library + self.packages.readable:
            link = os.readlink(path) if os.path.islink(path) else ""
            if link and not link.startswith("/") and path.count("/") == 1:  # /lib -> usr/lib
                arguments += ["--symlink", link, path]
            elif not any(Path(path).is_relative_to(other) for other in seen):
                arguments += ["--ro-bind", path, path]
                seen.append(path)
        arguments += ["--ro-bind", self.interpreter.executable, self.interpreter.executable]
        for device in devices():
            arguments += ["--dev-bind", device, device]
        return [*arguments, "--remount-ro", "/", "--chdir", "/tmp"]  # nosec B108 # a private mount


def num_descriptors(settings: SandboxSettings) -> int:
    """Tell how many files may be open: what socket buffers hold lies in the kernel, outside the limit on memory.

    A pipe holds 64 kB; both ends of a stream pair hold the machine's default each, and code cannot enlarge it.
    """
    try:
        buffer = int(Path("/proc/sys/net/core/wmem_default").read_text(encoding="ascii"))
    except (OSError, ValueError):  # hidden in the network namespace of a container
        buffer = 212992
    room = settings.memory_mb * MEGABYTE // 4 // max(buffer, 65536)
    return max(16, min(settings.max_open_files, room))


def make_plan(
    backend: SandboxBackend, settings: SandboxSettings, tag: str, layers: Layers | None = None
) -> ContainmentPlan:
    """Find what `backend` needs on this machine.

    Raises:
        SandboxUnavailableError: something is missing; the message says what.
        ConfigurationError: a package is not installed.
    """
    if backend == "bwrap":
        bwrap_path()
    if seccomp_program() is None and backend != "none":
        raise SandboxUnavailableError(
            explain(
                "the sandbox knows the system calls of x86_64 and aarch64 only",
                value=os.uname().machine,
                where="this machine",
                fix="run what executes code on such a machine",
            )
        )
    return ContainmentPlan(
        backend=backend,
        settings=settings,
        interpreter=find_interpreter(bool(settings.packages)),
        packages=find_packages(settings.packages),
        layers=layers or Layers(),
        tag=tag,
    )


def next_uid() -> int | None:
    """A user that no other sandbox has now, when we are root: the kernel counts threads per user."""
    if first_uid() is None:
        return None
    number = next(_serial)
    if _largest_uid() > 2**31:
        return 2**30 + os.getpid() % 2**22 * 128 + number % 128
    return 64000 + (os.getpid() * 61 + number) % 1500


@cache
def _largest_uid() -> float:
    try:
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return max((int(line.split()[0]) + int(line.split()[2]) for line in lines), default=math.inf)
