"""Ends a `ray start --head --block` of a test, and all that it started."""

from __future__ import annotations

import os
import signal
import subprocess

PATIENCE_SECONDS = 5.0
"""Ray's own stop often takes longer than 20 s; nothing is learned from it, and the group can be killed."""


def end(head: subprocess.Popen[bytes]) -> None:
    """Ask it to stop what it started; on a busy machine Ray takes longer over that than a test should wait."""
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)  # it has a session of its own
        head.wait(60)
