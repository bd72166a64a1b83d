"""A process that outlives its owner just long enough to kill what the owner was starting when it was killed.

bwrap makes its child before it ties the child to its own life. When the owner is killed in between, the
kernel kills bwrap, and the child waits for it for ever. The warden finds the child by the tag in its command.
"""

from __future__ import annotations

import contextlib
import os
import sys

_PROGRAM = """
import os, signal, sys, time
os.closerange(3, 1024)
tag = sys.stdin.buffer.readline().strip()
if not sys.stdin.buffer.read(1):
    for _ in range(20):
        for entry in os.listdir("/proc"):
            try:
                with open("/proc/%s/cmdline" % entry, "rb") as file:
                    words = file.read().split(b"\\0")
                if tag in words:
                    os.kill(int(entry), signal.SIGKILL)
            except (OSError, ValueError):
                pass
        time.sleep(0.1)
"""


class Warden:
    """Watches over the processes with one tag, until `close` or until this process dies."""

    def __init__(self, tag: str) -> None:
        """Start the watching process, in a session of its own: what kills our group must not kill it."""
        theirs, self._pipe = os.pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM],
                {"PATH": "/usr/bin:/bin"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
            )
        finally:
            os.close(theirs)
        os.write(self._pipe, tag.encode() + b"\n")

    def close(self) -> None:
        """Send it home: its owner ends in order, and has seen its processes dead."""
        with contextlib.suppress(BrokenPipeError):  # somebody killed it
            os.write(self._pipe, b".")
        os.close(self._pipe)
        with contextlib.suppress(ChildProcessError):  # somebody reaped it
            os.waitpid(self._pid, 0)
