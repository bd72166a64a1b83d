"""The state of a task: the try under way with the calls that it waits for, and what is counted over all tries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.flow.poison_items import PoisonSearch
from orchestrator.flow.task import Asks, Attempt, Exchange, Summary, Task
from policies.base.errors import CallNotStartedError, DivergenceError, PawlError, WorkerLostError
from workers.cluster.seam import Call


@dataclass(eq=False)
class Try:
    """A try at a task that is under way, and the calls that it waits for."""

    state: State
    attempt: Attempt
    inputs: dict[str, str]
    exchange: Exchange
    asks: Asks | None = None
    waiting: dict[Call, int] = field(default_factory=dict)
    answers: dict[int, Any] = field(default_factory=dict)
    errors: list[PawlError] = field(default_factory=list)


@dataclass(eq=False)
class State:
    """A task, and what has come of it so far."""

    task: Task
    summary: Summary | None = None
    """Given when it is finished."""
    running: Try | None = None
    attempts: int = 0
    deaths: int = 0
    """Of workers, since the milestone."""
    milestone: int = 0
    repaired: int = 0
    search: PoisonSearch | None = None
    left: bool = False
    """It may wait, and is left undone."""

    @property
    def done(self) -> bool:
        return self.summary is not None

    @property
    def settled(self) -> bool:
        """Tell whether nothing more is to be done about it."""
        return self.done or self.left


@dataclass
class TaskClock:
    """The seconds in which a kind of task had any try under way."""

    seconds: float = 0.0
    _tries: int = 0
    _since: float = 0.0

    def begin(self) -> None:
        """A try began."""
        if not self._tries:
            self._since = time.monotonic()
        self._tries += 1

    def end(self) -> None:
        """A try ended."""
        self._tries -= 1
        if not self._tries:
            self.seconds += time.monotonic() - self._since


def cause_of(errors: Sequence[PawlError]) -> PawlError:
    """The error to report: a worker that is left alone fails too, but is not why."""
    lost = [e for e in errors if isinstance(e, WorkerLostError)]
    began = [e for e in lost if not isinstance(e, CallNotStartedError)]
    diverged = [e for e in errors if isinstance(e, DivergenceError)]
    return [*began, *lost, *diverged, *errors][0]
