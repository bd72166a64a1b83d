"""A look from outside at code that runs, and the stop between two jobs: no limit that the code keeps counts here.

The launcher hands over two descriptors before it reads any code: one of its own process, one of its private folder.
So both are known for sure, through every namespace, whatever the code does later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path


class Watch:
    """Looks at one contained process, and stops and continues it."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        """Take over the descriptors: a pidfd and, where there is a private folder, that."""
        self._process, *folder = descriptors
        self._folder = folder[0] if folder else None
        self.pid = _number(self._process)
        self._is_frozen = False

    def threads(self) -> int:
        """Threads that it has now; 0 when it has ended."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0
        return int(text.rpartition(")")[2].split()[17])

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far; 0 when it has ended."""
        if self.pid <= 0:
            return 0.0
        try:
            return time.clock_gettime(~self.pid << 3 | 2)  # what clock_getcpuclockid() makes
        except OSError:
            return 0.0

    def num_files(self) -> int:
        """Files, folders and links in its private folder, and removed ones that it holds open."""
        if self._folder is None:
            return 0
        found = os.fstatvfs(self._folder)
        return found.f_files - found.f_ffree

    def freeze(self) -> None:
        """Stop all of it, timers and threads and handlers of signals, until `thaw`; no process can refuse that."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGSTOP)
        self._is_frozen = True

    def thaw(self) -> None:
        """Let it go on, if it was stopped."""
        if self._is_frozen:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGCONT)
        self._is_frozen = False

    def close(self) -> None:
        """Close the descriptors; the memory of the private folder is free only then."""
        os.close(self._process)
        if self._folder is not None:
            os.close(self._folder)


def _number(pidfd: int) -> int:
    """The number of a process as this namespace counts; -1 when it has ended."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii")
    return int(dict(line.split(":", 1) for line in text.splitlines())["Pid"])
