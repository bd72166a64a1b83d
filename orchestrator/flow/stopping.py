"""Stopping on request: the first Ctrl-C (or SIGTERM) ends the run after the shard in hand, the second at once.

Ctrl-C is a person's wish (exit code 130); SIGTERM and SIGUSR1 come from a scheduler that takes the machine
back, and the run wants to go on elsewhere (exit code 75).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from policies.base.errors import INTERRUPTED, TEMPORARY

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class InterruptedRun(KeyboardInterrupt):
    """The run was asked to stop and did so at a point from which it can be resumed."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 75: the same command should be tried again."""
        return INTERRUPTED if self.number == signal.SIGINT else TEMPORARY


class StopRequest:
    """Set by a signal, read by the loops."""

    def __init__(self) -> None:
        self.requested = False
        self.number: int = signal.SIGINT

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.requested:
            raise InterruptedRun("stopped at once", number)
        self.requested = True
        self.number = number

    def check(self) -> None:
        """Raise `InterruptedRun` when a stop was asked for."""
        if self.requested:
            raise InterruptedRun("stopped on request", self.number)


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Route SIGINT, SIGTERM and SIGUSR1 to `stop`, and put the old handlers back afterwards.

    Outside the main thread no handler can be set; the run then goes on without.
    """
    with _handling(SIGNALS, stop):
        yield


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise `InterruptedRun` where nothing listens: before a run begins and after it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise InterruptedRun("stopped at once", number)

    with _handling(SIGNALS[1:], end):
        yield


@contextmanager
def _handling(numbers: tuple[signal.Signals, ...], handler: object) -> Iterator[None]:
    previous: dict[signal.Signals, object] = {}
    try:
        for number in numbers:
            previous[number] = signal.signal(number, handler)  # type: ignore[arg-type]
    except ValueError:
        previous.clear()
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)  # type: ignore[arg-type]
