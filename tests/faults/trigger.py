"""Makes a fault happen inside a driver at one moment of a run: at an event, a while after it, or before a journal line.

A trigger writes its `fired` file before it acts, so that a test can tell a fault that hit from one that did not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orchestrator.inspect.views.display
from orchestrator.driver import assembly
from orchestrator.rounds.context import Groups
from orchestrator.runs.events import Event
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase
from policies.base.records import Record
from policies.storage.faulty_files import CountingFiles, RefusingFiles
from policies.storage.files import using

HOLD_SECONDS = 60.0

_for_good = ExitStack()
"""What holds as long as this process lives: it is a fork that does one command."""


class Trigger:
    """Waits for its moment, once."""

    def __init__(self, moment: dict[str, Any]) -> None:
        self.event: str = moment["event"]
        self.round: int | None = moment["round"]
        self.phase: str | None = moment["phase"]
        self.nth: int = moment["nth"]
        self.delay: float = moment["delay"]
        self.action: str = moment["action"]
        self.fired = Path(moment["fired"])
        self.seen = 0
        self.has_acted = False
        self._lock = threading.Lock()
        self.victims: list[int] = []
        """Processes of the group that the action names behind an `@`."""

    def __call__(self, event: Event) -> None:
        """An observer of the run's events."""
        if event.kind == self.event and self._here(event.round, event.phase):
            self.reached()
        elif event.kind == "phase_finished" and self.is_waiting:
            self.act()  # the phase was shorter than the delay: its end is the last moment inside it

    def journal(self, round_index: int, phase: str) -> None:
        """Called before a line is added to the journal."""
        if self.event == "journal" and self._here(round_index, phase):
            self.reached()

    def _here(self, round_index: int | None, phase: str | None) -> bool:
        return self.round in (None, round_index) and self.phase in (None, phase)

    def reached(self) -> None:
        """The moment came: act when it is the one that counts."""
        self.seen += 1
        if self.seen != self.nth:
            return
        if "@" in self.action:
            self.victims = _pids(self.action.partition("@")[2])
        if self.delay > 0:
            threading.Thread(target=self._later, daemon=True).start()
        else:
            self.act()

    def _later(self) -> None:
        time.sleep(self.delay)
        self.act()

    @property
    def is_waiting(self) -> bool:
        """The moment came, its delay has not passed."""
        return self.seen >= self.nth and self.delay > 0 and not self.has_acted

    def act(self) -> None:
        """Do what was asked for, once."""
        with self._lock:
            if self.has_acted:
                return
            self.has_acted = True
        self.fired.write_text(str([*self.victims, os.getpid()][0]), encoding="utf-8")
        if self.action == "hold":
            self._hold()
        elif self.action == "note":
            return
        elif self.victims:
            os.kill(self.victims[0], signal.Signals[self.action.partition("@")[0]])
        else:
            for name in self.action.split("+"):
                os.kill(os.getpid(), signal.Signals[name])

    def _hold(self) -> None:
        """Stand still until the test removes the file: it does something to the run meanwhile."""
        deadline = time.monotonic() + HOLD_SECONDS
        while self.fired.exists() and time.monotonic() < deadline:
            time.sleep(0.005)


class FailingFiles(RefusingFiles):
    """Storage that fails from its n-th operation on, as a full or broken disk does, and says when it began."""

    def __init__(self, error: int, first: int, reached: Callable[[], None]) -> None:
        super().__init__(error, first)
        self._reached = reached

    def about_to(self, operation: str, path: Path) -> None:
        """Before each operation."""
        if self.count + 1 == self.first:
            self._reached()
        super().about_to(operation, path)


class KillingFiles(CountingFiles):
    """The process is killed right before its n-th operation on a file of the run."""

    def __init__(self, nth: int, reached: Callable[[], None]) -> None:
        super().__init__()
        self._nth, self._reached = nth, reached

    def about_to(self, operation: str, path: Path) -> None:
        """Before each operation."""
        super().about_to(operation, path)
        if self.count == self._nth:
            self._reached()


_groups: list[Groups] = []
"""The worker groups of the run, once they are started."""


def _pids(group: str) -> list[int]:
    pids: list[int] = getattr(_groups[-1], group).pids()
    return pids


def _remember_groups() -> None:
    start = assembly.start_groups  # type: ignore[attr-defined]

    def started(*arguments: Any, **named: Any) -> Groups:
        _groups.append(start(*arguments, **named))
        return _groups[-1]

    assembly.start_groups = started  # type: ignore[attr-defined]


def arm(moment: dict[str, Any]) -> None:
    """Set the trigger up in this process, before the command runs."""
    trigger = Trigger(moment)
    if moment["event"] == "storage":
        _for_good.enter_context(using(FailingFiles(moment["error"], moment["nth"], trigger.act)))
        return
    if moment["event"] == "operation":
        _for_good.enter_context(using(KillingFiles(moment["nth"], trigger.act)))
        return
    if moment["event"] == "clock":
        _jump(moment["nth"], trigger)
        return
    if moment["event"] == "journal":
        _watch_journal(trigger)
        return
    if "@" in trigger.action:
        _remember_groups()
    observers_for = orchestrator.inspect.views.display.observers_for
    orchestrator.inspect.views.display.observers_for = lambda console: [
        *observers_for(console),
        trigger,
    ]


def _jump(nth: int, trigger: Trigger) -> None:
    """From the nth look at the wall clock on it is a day earlier, then later, and so on."""
    true, looks = time.time, 0

    def jumping() -> float:
        nonlocal looks
        looks += 1
        if looks == nth:
            trigger.act()
        return true() + (86400.0 * (-1) ** looks if looks >= nth else 0.0)

    time.time = jumping


def _watch_journal(trigger: Trigger) -> None:
    class WatchedJournal(Journal):
        def append(self, round_index: int, phase: Phase, result: Record) -> None:
            trigger.journal(round_index, phase.value)
            super().append(round_index, phase, result)

    assembly.Journal = WatchedJournal  # type: ignore[attr-defined]
