"""Call foreign code on what a policy wrote in a copy of this process, so that no text can hang, fill or kill it.

The copy has a limit on its processor time and memory, which also ends one long multiplication. That a limit was reached
is the answer's doing; that the machine had no time for the copy is not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from policies.base.errors import PawlError, VerificationError, boundary, explain

SPARE_BYTES = 2 * 2**30
"""Memory that the copy may take beyond what this process has."""


def call_in_copy(
    function: Callable[[], float], *, cpu_seconds: float, wall_seconds: float
) -> float | None:
    """Return what `function` returns; None when it raises, returns no finite number, or reaches a limit.

    Args:
        function: what to call; its side effects stay in the copy.
        cpu_seconds: most processor time, rounded up to whole seconds.
        wall_seconds: longest wait.

    Raises:
        VerificationError: the copy had no result after `wall_seconds` although it used less processor time than that.
    """
    reading, writing = os.pipe()
    copy = os.fork()
    if copy == 0:
        _be_the_copy(function, reading, writing, cpu_seconds)
    os.close(writing)
    try:
        found = _read(reading, time.monotonic() + wall_seconds)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
    if found is None:
        raise VerificationError(
            explain(
                "the machine had no time to judge an answer: its process got too little of the processor",
                value=wall_seconds,
                where="verifiers[...].timeout_seconds",
                fix="raise it, or run fewer workers on this machine",
            )
        )
    return json.loads(found)[0] if found else None


def _be_the_copy(
    function: Callable[[], float], reading: int, writing: int, cpu_seconds: float
) -> None:
    """Call, write the result, and end without any of the cleaning up that is the other process's."""
    try:
        os.close(reading)
        used = resource.getrusage(resource.RUSAGE_SELF)
        most = math.ceil(used.ru_utime + used.ru_stime + cpu_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        size = pages * resource.getpagesize() + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        value = None
        with contextlib.suppress(PawlError), boundary(VerificationError, "it failed"):
            value = float(function())
        finite = value is not None and math.isfinite(value)
        os.write(writing, json.dumps([value if finite else None]).encode())
    finally:
        os._exit(0)


def _read(reading: int, deadline: float) -> bytes | None:
    """All that the copy writes; None when it is not done in time."""
    found = b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        block = os.read(reading, 4096)
        if not block:
            return found
        found += block
