"""Threads in which counterparts answer, each answer with a time limit of its own.

A thread cannot be killed. One whose work hangs is left behind, and another takes its place, until there are twice as
many threads as may work at a time; then no new one is started, and when none is left that works, whatever waits fails
at once. One that was left behind ends when its work returns. The threads are daemons: a process can always end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from policies.base.errors import PawlError, RolloutError, boundary

_IDLE_SECONDS = 0.5
"""Longest sleep between two looks at what is overdue."""


@dataclass(frozen=True)
class Finished:
    """The outcome of one piece of work."""

    key: int
    value: object = None
    error: str | None = None
    hung: bool = False
    """It did not return in time and may still be running."""


@dataclass(frozen=True)
class _Work:
    number: int
    key: int
    call: Callable[[], object]
    what: str


class CounterpartThreads:
    """Runs calls that may block; answers come in the order in which they finish."""

    def __init__(self, size: int, timeout_seconds: float) -> None:
        """Start nothing yet: threads come with the work.

        Args:
            size: most threads that work at a time; twice as many exist at most.
            timeout_seconds: longest time of one call, counted from when a thread takes it up.
        """
        self._size = size
        self._timeout = timeout_seconds
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._running: dict[int, tuple[_Work, float]] = {}
        self._threads = 0
        self._left_behind = 0
        self._numbers = 0
        self.pending = 0
        """Calls that were submitted and have not come out of `done`."""

    def submit(self, key: int, call: Callable[[], object], what: str) -> None:
        """Have `call` made by a thread; `what` names it in messages. Answered under `key`."""
        self._numbers += 1
        self.pending += 1
        self._waiting.put(_Work(self._numbers, key, call, what))
        with self._lock:
            if self._threads < self.pending:
                self._start_if_allowed()

    def done(self, *, wait: bool) -> list[Finished]:
        """Answers since the last call; with `wait`, at least one if any is pending."""
        found = self._collect()
        while wait and self.pending and not found:
            try:
                found = [self._answers.get(timeout=self._patience())]
            except queue.Empty:
                found = self._collect()
        self.pending -= len(found)
        return found

    def forget_waiting(self) -> None:
        """Drop the work that no thread has taken up."""
        self.pending -= len(self._drain())

    def release(self) -> None:
        """Let idle threads end; new work starts new ones."""
        with self._lock:
            for _ in range(self._threads):
                self._waiting.put(None)
            self._threads = 0

    def _collect(self) -> list[Finished]:
        found = self._overdue()
        while True:
            try:
                found.append(self._answers.get_nowait())
            except queue.Empty:
                return found

    def _overdue(self) -> list[Finished]:
        """Give up the calls whose time is over, and what waits when no thread is left to make it."""
        now = time.monotonic()
        found = []
        with self._lock:
            late = [w for w, started in self._running.values() if now - started > self._timeout]
            for work in late:
                del self._running[work.number]
                self._threads -= 1
                self._left_behind += 1
                message = f"{work.what} did not return within {self._timeout:g} s"
                found.append(Finished(work.key, error=message, hung=True))
            while self._threads < self._waiting.qsize() and self._start_if_allowed():
                pass
            stuck = not self._threads and self._left_behind >= 2 * self._size
        if stuck:
            why = f"all {2 * self._size} threads for counterparts are held by calls that never returned"
            found += [Finished(work.key, error=f"{work.what}: {why}") for work in self._drain()]
        return found

    def _drain(self) -> list[_Work]:
        """Take back the work that no thread has taken up; what tells idle threads to end stays."""
        taken: list[_Work | None] = []
        while True:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        for _ in range(taken.count(None)):
            self._waiting.put(None)
        return [work for work in taken if work is not None]

    def _patience(self) -> float:
        """Seconds until the next call is overdue."""
        with self._lock:
            ends = [started + self._timeout for _, started in self._running.values()]
        return min([_IDLE_SECONDS, *(max(0.0, end - time.monotonic()) + 0.001 for end in ends)])

    def _start_if_allowed(self) -> bool:
        if self._threads >= self._size or self._threads + self._left_behind >= 2 * self._size:
            return False
        self._threads += 1
        threading.Thread(target=self._work, name="pawl-counterpart", daemon=True).start()
        return True

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            with self._lock:
                self._running[work.number] = (work, time.monotonic())
            value, problem = None, None
            try:
                with boundary(RolloutError, f"{work.what} failed"):
                    value = work.call()
            except PawlError as error:
                problem = str(error)
            with self._lock:
                in_time = self._running.pop(work.number, None) is not None
                if not in_time:
                    self._left_behind -= 1
                    return
                self._answers.put(Finished(work.key, value, problem))
