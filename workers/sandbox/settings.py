"""Settings of a sandbox, and its answers: limits in, typed outcomes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import Field

from policies.base.bounds import MAX_CHARACTERS, MAX_MEGABYTES, MAX_SECONDS, MAX_WORKERS
from policies.base.component import Settings
from policies.base.records import Json

SandboxBackend = Literal["bwrap", "landlock", "none"]


class SandboxSettings(Settings):
    """Limits on model-written code, and how it is contained."""

    backend: Literal["auto", "bwrap", "landlock", "none"] = "auto"
    """bwrap: namespaces around our launcher; landlock: the launcher alone; auto: the first that passes its own
    attacks here; none: no containment, and only with `allow_unsandboxed`."""
    allow_unsandboxed: bool = False
    """Run model-written code as an ordinary process where nothing contains it. Loud, and recorded. Do not."""
    wall_seconds: float = Field(default=10.0, gt=0, le=MAX_SECONDS)
    """Longest time of one execution."""
    cpu_seconds: float = Field(default=8.0, gt=0, le=MAX_SECONDS)
    """Most processor time of one execution, or of one cell of a session, all threads together; between two cells a
    session stands still."""
    memory_mb: int = Field(default=512, ge=64, le=MAX_MEGABYTES)
    """Most address space."""
    scratch_mb: int = Field(default=64, ge=1, le=MAX_MEGABYTES)
    """Size of the private /tmp (bwrap only; the fallback has no writable folder)."""
    max_files: int = Field(default=4096, ge=16, le=1_000_000)
    """Files, folders and links in the private /tmp (bwrap only): each takes about 1 kB of the kernel's memory."""
    output_kb: int = Field(default=256, ge=1, le=MAX_CHARACTERS // 1024)
    """Most bytes of standard output; more ends the execution."""
    max_threads: int = Field(default=16, ge=1, le=MAX_WORKERS)
    """Threads of the one process; other processes are refused."""
    max_open_files: int = Field(default=64, ge=16, le=65_536)
    """File descriptors; fewer where as many full sockets would take more than a quarter of `memory_mb`."""
    packages: tuple[str, ...] = ()
    """Installed packages that the code may import besides the standard library, e.g. `numpy`, and what they need."""
    num_warm: int = Field(default=2, ge=0, le=MAX_WORKERS)
    """Sandboxes that stand ready, started ahead of need (each about 10 MB). Each serves once."""


class SandboxStatus(StrEnum):
    """The end of an execution."""

    OK = "ok"
    RAISED = "raised"
    """The code raised, or ended with an exit code other than 0."""
    KILLED = "killed"
    """It died of a signal, e.g. a crash in C code."""
    CPU_LIMIT = "cpu_limit"
    WALL_LIMIT = "wall_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    BAD_REPLY = "bad_reply"
    """It answered with what is not plain JSON, or forged an answer."""
    START_FAILED = "start_failed"
    """Our fault: tried again, then reported as an error, never scored."""


@dataclass(frozen=True)
class SandboxResult:
    """One execution of a program, or of one cell of a session."""

    status: SandboxStatus
    stdout: str
    """Cut at `output_kb`; bytes that are no UTF-8 are replaced."""
    error: str
    """Last lines of the traceback or of standard error; for START_FAILED, what failed."""
    wall_seconds: float
    backend: SandboxBackend


@dataclass(frozen=True)
class CallResult:
    """One call of a function defined by untrusted code: `value` is plain JSON, and only with status OK."""

    status: SandboxStatus
    value: Json = None
    error: str = ""
