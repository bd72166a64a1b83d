"""Tells whether a process of this machine still lives: by number and start time, so no later one is taken for it."""

from __future__ import annotations


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, None when there is no such process (or no /proc)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
            fields = handle.read().rpartition(")")[2].split()
        # A zombie has ended; only its parent has not taken notice.
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
