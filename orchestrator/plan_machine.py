"""What this machine has: cores, GPUs, memory, disk. Nothing is started or reserved to find out."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SMI_SECONDS = 10


@dataclass(frozen=True)
class Machine:
    """Resources of one machine."""

    cpus: int
    memory_bytes: int
    available_bytes: int
    gpu_bytes: tuple[int, ...]
    """Memory of each GPU."""


def this_machine() -> Machine:
    """Look at the machine that this process runs on, containers' limits included."""
    total, available = _memory()
    return Machine(cpus=_cpus(), memory_bytes=total, available_bytes=available, gpu_bytes=_gpus())


def free_disk(path: Path) -> int:
    """Free bytes on the file system where `path` is, or would be."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _cpus() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdecimal():
        cpus = min(cpus, max(1, -(-int(quota[0]) // int(quota[1]))))
    return cpus


def _memory() -> tuple[int, int]:
    facts: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(":")
            facts[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages, pages
    total, available = facts.get("MemTotal", 0), facts.get("MemAvailable", 0)
    limit, used = (_first_line(Path(f"/sys/fs/cgroup/memory.{n}")) for n in ("max", "current"))
    if limit.isdecimal() and int(limit) < total:
        total = int(limit)
        available = min(available, total - (int(used) if used.isdecimal() else 0))
    return total, available


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _gpus() -> tuple[int, ...]:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(
            query, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    sizes = tuple(int(line) << 20 for line in found.stdout.split() if line.isdecimal())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return sizes[: len(visible.split(","))] if visible else sizes
