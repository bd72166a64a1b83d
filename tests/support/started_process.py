"""A process that a test starts, and that is gone with its pipes when the test is over, however it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import AnyStr


@contextmanager
def ended_after(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """Kill the process on the way out where it still runs, wait for it and close its pipes.

    A pipe that a failed test leaves open would otherwise be told as a failure of whichever test comes when the
    garbage is collected, or of the whole session.
    """
    with process:
        try:
            yield process
        finally:
            process.kill()
