"""Resources of this machine: cores, GPUs, memory, disk. Nothing is started or reserved to find out."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from workers.cluster.gpus import usable_gpus


@dataclass(frozen=True)
class Machine:
    """Resources of one machine."""

    cpus: int
    memory_bytes: int
    available_bytes: int
    gpu_bytes: tuple[int, ...]
    """Memory of each GPU."""
    gpu_capabilities: tuple[float, ...] = ()
    """CUDA compute capability of each GPU, e.g. 8.0; empty where the driver does not say."""

    @property
    def capabilities(self) -> tuple[float, ...]:
        """Of each GPU; 0.0 where the driver does not say."""
        unknown = len(self.gpu_bytes) - len(self.gpu_capabilities)
        return (*self.gpu_capabilities, *[0.0] * unknown)


def this_machine() -> Machine:
    """Look at the machine that this process runs on, containers' limits included."""
    total, available = _memory()
    gpus = usable_gpus()
    return Machine(
        cpus=_cpus(),
        memory_bytes=total,
        available_bytes=available,
        gpu_bytes=tuple(size for size, _ in gpus),
        gpu_capabilities=tuple(capability for _, capability in gpus if capability),
    )


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
