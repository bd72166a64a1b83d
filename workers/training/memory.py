"""Settings of the machine for an update: all its cores, and freed memory kept for the next step."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # parameters of glibc's mallopt
_DEFAULT_MMAP_MAX, _DEFAULT_TRIM = 65_536, 128 * 1024


@contextmanager
def kept_memory(*, enabled: bool) -> Iterator[None]:
    """Let glibc keep freed blocks instead of giving each large one back to the kernel; give all back at the end.

    A training step allocates the same activations again and again. By default glibc maps each block above 32 MB (and
    at first above 128 KB) anew, and clearing those pages took a fifth of a step on 2 cores. Does nothing elsewhere.
    """
    libc = ctypes.CDLL(None) if enabled and os.name == "posix" else None
    tuned = libc is not None and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")
    if libc is not None and tuned:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        gc.collect()
        if libc is not None and tuned:
            libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
            libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
            libc.malloc_trim(0)


def patient_threads() -> None:
    """Let idle compute threads sleep rather than spin; works only before torch is loaded in this process.

    By default OpenMP's threads burn their core while they wait for each other. Beside any other busy process (a
    sampler, a test run) that made a step five times slower on 2 cores; sleeping costs nothing measurable.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def torch_threads(count: int | None, *, shared_by: int = 1) -> Iterator[None]:
    """Compute with `count` threads, or with one on each core that this process may use.

    `shared_by` workers on this machine share the cores.

    Ray starts workers with OMP_NUM_THREADS=1 unless told otherwise; training on one core of many is a trap.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or max(1, len(os.sched_getaffinity(0)) // shared_by))
    try:
        yield
    finally:
        torch.set_num_threads(before)
