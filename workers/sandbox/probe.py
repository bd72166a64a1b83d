"""Finds the backend that contains code on this machine: each candidate has to stand attacks of our own first."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policies.base.errors import ConfigurationError, SandboxUnavailableError, explain
from workers.sandbox.interpreter import ENVIRONMENT
from workers.sandbox.keeper import keeper
from workers.sandbox.outcome import read_replies, result_of
from workers.sandbox.policy import ContainmentPlan, make_plan, next_uid
from workers.sandbox.process import Budget, spawn
from workers.sandbox.settings import SandboxBackend, SandboxSettings, SandboxStatus

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_chosen: dict[str, SandboxBackend] = {}
_warned: set[str] = set()

PROBE_SECONDS = 20.0
MAX_PROBE_THREADS = 64

ATTACKS = """
import ctypes, fcntl, mmap, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def reaches(attack):
    try:
        return bool(attack())
    except (OSError, MemoryError, ValueError, OverflowError):
        return False

def call(number, *values):
    return libc.syscall(number, *values) >= 0

def forks():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return True

def connects(family, address):
    with socket.socket(family) as s:
        s.settimeout(2)
        return s.connect_ex(address) == 0

def locks():
    with open(os.__file__, "rb") as file:
        return fcntl.flock(file, fcntl.LOCK_SH) is None

def inherited():
    kept = []
    for number in range(3, 64):
        try:
            os.fstat(number)
        except OSError:
            continue
        kept.append(number)
    return len(kept) > 1

def probe(aim):
    x86 = os.uname().machine == "x86_64"
    ptrace, unshare, memfd = (101, 272, 319) if x86 else (117, 97, 279)
    attacks = {
        "reads a file": lambda: open(aim["secret"]).read(),
        "reads /etc/passwd": lambda: open("/etc/passwd").read(),
        "writes a file": lambda: open(aim["folder"] + "/written", "w"),
        "connects to a port": lambda: connects(socket.AF_INET, ("127.0.0.1", aim["port"])),
        "makes a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "makes a datagram pair": lambda: socket.socketpair(type=socket.SOCK_DGRAM),
        "locks a library file": locks,
        "signals its parent": lambda: os.kill(aim["parent"], 0) is None,
        "reads its parent's environment": lambda: open(f"/proc/{aim['parent']}/environ", "rb").read(),
        "attaches to its parent": lambda: call(ptrace, 16, aim["parent"], 0, 0),
        "makes a user namespace": lambda: call(unshare, 0x10000000),
        "makes memory outside its limit": lambda: call(memfd, b"x", 0),
        "sets up io_uring": lambda: call(425, 1, ctypes.create_string_buffer(128)),
        "maps too much memory": lambda: mmap.mmap(-1, aim["memory"]),
        "inherits a file": inherited,
        "finds a strange environment": lambda: set(os.environ) - set(aim["environment"]),
        "forks": forks,
    }
    return [name for name, attack in attacks.items() if reaches(attack)]

def works():
    seen = []
    threads = [threading.Thread(target=seen.append, args=(1,)) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    open(os.devnull, "w").write("x")
    return len(seen)

def imports(names):
    for name in names: __import__(name)
    return len(names)

def executes(path):
    os.execv(path, [path])
"""
"""Attacks that a sandbox must withstand before it is trusted, and what it must let code do."""


def choose_plan(settings: SandboxSettings) -> ContainmentPlan:
    """The plan of the backend to use; decided once per process and settings.

    Raises:
        SandboxUnavailableError: no backend stands the probe, or the one that was asked for does not.
        ConfigurationError: `none` without `allow_unsandboxed`, or a package that is not installed.
    """
    key = settings.model_dump_json(exclude={"num_warm"})
    with _lock:
        backend = _chosen.get(key)
        if backend is None:
            backend = _chosen[key] = _choose(settings)
    return make_plan(backend, settings, secrets.token_hex(6))


def _choose(settings: SandboxSettings) -> SandboxBackend:
    if settings.backend == "none":
        return _unsandboxed(settings)
    candidates: tuple[SandboxBackend, ...] = ("bwrap", "landlock")
    if settings.backend != "auto":
        candidates = (settings.backend,)
    problems = []
    for backend in candidates:
        try:
            reached = probe(make_plan(backend, settings, secrets.token_hex(6)))
        except SandboxUnavailableError as error:
            problems.append(f"{backend}: {error}")
            continue
        if not reached:
            if problems:
                _warn_once(problems[0])
            return backend
        problems.append(f"{backend}: code {', '.join(reached)}")
    raise SandboxUnavailableError(
        explain(
            "model-written code cannot be contained on this machine",
            value="; ".join(problems),
            where=f"sandbox.backend = {settings.backend}",
            fix="apt-get install bubblewrap and allow user namespaces, or use a kernel with Landlock (5.13 or "
            "newer, `landlock` among the kernel's `lsm=`)",
        )
    )


def _unsandboxed(settings: SandboxSettings) -> SandboxBackend:
    if not settings.allow_unsandboxed:
        raise ConfigurationError(
            explain(
                "running model-written code without a sandbox has to be asked for twice",
                value="none",
                where="sandbox.backend",
                fix="use auto; or, on a machine that you can lose, set sandbox.allow_unsandboxed=true as well",
            )
        )
    logger.warning(
        "MODEL-WRITTEN CODE RUNS WITHOUT A SANDBOX (sandbox.backend = none): it can read, change and send "
        "everything that this user can"
    )
    return "none"


def _warn_once(problem: str) -> None:
    if problem not in _warned:
        _warned.add(problem)
        logger.warning(
            "the sandbox uses its inner layer alone (Landlock and seccomp, no namespaces): %s. It holds; what it "
            "lacks is in docs/sandbox.md. For both layers: apt-get install bubblewrap and allow user namespaces",
            problem,
        )


def probe(plan: ContainmentPlan) -> list[str]:
    """Attack one plan; returns the attacks that reached their aim, and what code should be able to do but cannot.

    Raises:
        SandboxUnavailableError: no process starts under this plan.
    """
    with _victims() as aim, _inheritable():
        aim["memory"] = (plan.settings.memory_mb + 64) * 2**20
        uid = next_uid()
        process = spawn(plan.command(uid), plan.hello, keeper).result()
        try:
            report = process.wait_ready()
            missing = _missing_layers(plan, report)
            modules = [name for name, _ in plan.packages.modules]
            calls: list[tuple[str, str, list[Any]]] = [
                ("probe", "probe", [aim]),
                ("works", "works", []),
                ("imports", "imports", [modules]),
                ("executes", "executes", ["/bin/true"]),
            ]
            job = {"kind": "call", "code": _DISPATCH, "function": "dispatch", "cpu_seconds": 10}
            job["calls"] = [[name, [function, values]] for name, function, values in calls]
            raw = process.exchange(job, Budget(PROBE_SECONDS, 2**20), lambda line: False)
        finally:
            process.kill()
    ended = result_of(raw, plan.backend, plan.settings)
    attacked, works, imported, executed = read_replies(
        bytes(raw.control), [name for name, _, _ in calls], ended
    )
    reached = list(missing)
    if attacked.status is SandboxStatus.OK and isinstance(attacked.value, list):
        reached += [str(name) for name in attacked.value]
    else:
        reached.append(f"ended the probe ({attacked.status.value}: {attacked.error})")
    if executed.status is not SandboxStatus.RAISED or "PermissionError" not in executed.error:
        reached.append("executes a program")
    if works.value != 2:
        reached.append(f"cannot use threads and /dev/null ({works.error})")
    if imported.value != len(modules):
        reached.append(f"cannot import its packages ({imported.error[-300:]})")
    return reached


_DISPATCH = ATTACKS + "\ndef dispatch(name, values):\n    return globals()[name](*values)\n"


def _missing_layers(plan: ContainmentPlan, report: dict[str, Any]) -> list[str]:
    missing = []
    if not report["seccomp"]:
        missing.append("runs without a system call filter")
    if plan.backend == "landlock" and report["landlock"] < 1:
        missing.append("runs without Landlock, which this kernel does not have")
    return missing


@contextmanager
def _victims() -> Iterator[dict[str, Any]]:
    """Things on this machine that an attack may reach if nothing holds it: open to every user on purpose."""
    with tempfile.TemporaryDirectory(prefix="pawl-probe-") as folder, socket.socket() as listener:
        os.chmod(folder, 0o777)  # nosec B103 # a folder made to be attacked
        secret = Path(folder) / "secret"
        secret.write_text("secret", encoding="ascii")
        secret.chmod(0o644)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield {
            "secret": str(secret),
            "folder": folder,
            "port": listener.getsockname()[1],
            "parent": os.getpid(),
            "environment": list(ENVIRONMENT),
        }


@contextmanager
def _inheritable() -> Iterator[None]:
    """A descriptor that a careless start would hand down."""
    ends = os.pipe()
    os.set_inheritable(ends[0], True)
    try:
        yield
    finally:
        for end in ends:
            os.close(end)
