"""The start of the kernel and the pid namespace that a process is in: only there does a process number count."""

from __future__ import annotations

import os
import time
from pathlib import Path


def boot_id() -> str:
    """The id that this start of the kernel was given; empty where there is none (not Linux, some sandboxes)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def pid_namespace() -> str:
    """The namespace in which this process has its number, e.g. `pid:[4026531836]`; empty where that is not told.

    A `/proc` that was mounted for another namespace shows that one's numbers: it is not told then.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def seconds_since_boot() -> float:
    """Seconds since the kernel started, sleep included: a clock that nobody sets. 0.0 where there is none."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return 0.0
