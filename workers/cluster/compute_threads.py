"""Sets how many CPU threads the models of a worker use: said before torch is loaded, because it reads it only then.

Ray starts an actor with OMP_NUM_THREADS=1 unless it was promised whole cores: a sampler then works at two thirds of its
speed on two cores, and at less on more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection


def set_threads(count: int | None = None, *, shared_by: int = 1) -> int:
    """Let what computes in this process use `count` threads; returns how many.

    Args:
        count: threads; None gives this process its share of the cores that it may use.
        shared_by: workers of the same kind on this machine, which share its cores.
    """
    threads = count or max(1, len(os.sched_getaffinity(0)) // shared_by)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


def follow_threads() -> None:
    """Follow OMP_NUM_THREADS also where torch was loaded before it was set, by a plug-in for instance."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    torch = sys.modules.get("torch")
    if torch is not None and asked.isdigit() and torch.get_num_threads() < int(asked):
        torch.set_num_threads(int(asked))


def bind_cores(cores: Collection[int]) -> None:
    """Keep this process on `cores`, with one compute thread on each."""
    os.sched_setaffinity(0, cores)
    set_threads()


def cores_in(text: str) -> set[int]:
    """Core numbers of a list such as `0-3,8`.

    Raises:
        ValueError: it is no such list.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    if not found:
        raise ValueError("it names no core")
    return found
