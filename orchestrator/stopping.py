"""Stopping on request: the first Ctrl-C (or SIGTERM) ends the run after the shard in hand, the second at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedRun(KeyboardInterrupt):
    """The run was asked to stop and did so at a point from which it can be resumed."""


class StopRequest:
    """Set by a signal, read by the loops."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.requested:
            raise InterruptedRun("stopped at once")
        self.requested = True

    def check(self) -> None:
        """Raise `InterruptedRun` when a stop was asked for."""
        if self.requested:
            raise InterruptedRun("stopped on request")


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Route SIGINT and SIGTERM to `stop`, and put the old handlers back afterwards.

    Outside the main thread no handler can be set; the run then goes on without.
    """
    previous: dict[signal.Signals, object] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop)
    except ValueError:
        previous.clear()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
