"""Events of a run, as they happen: written to `events.jsonl` and handed to observers (progress, tests).

Events carry clocks and are for people; decisions are made from the journal alone.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from policies.base.errors import PawlError
from policies.base.records import Json
from policies.base.redaction import redact_secrets, redact_values
from policies.storage import files
from policies.storage.checksums import SealedLine

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 1000
"""Events that are kept in memory for a disk that takes none."""


class EventKind(StrEnum):
    """Everything that is worth a line."""

    RUN_STARTED = "run_started"
    """Also after a resume; detail: `resumed`, `rounds`."""
    WORKERS_STARTING = "workers_starting"
    WORKERS_READY = "workers_ready"
    """detail: seconds."""
    PHASE_STARTED = "phase_started"
    """detail of collect/evaluate: `shards` to do, `shards_total`."""
    PHASE_FINISHED = "phase_finished"
    """detail: `seconds`, and short numbers for the INFO line."""
    SHARD_STAGE_FINISHED = "shard_stage_finished"
    """detail: `shard`, `stage` (rollout, verify, judge, prefer, grade), `tokens`, `trajectories`."""
    TRAINING_STEP = "training_step"
    """detail: `step`, `steps`."""
    THROUGHPUT = "throughput"
    """detail: `stages`, with `tokens` and busy `seconds` of each, and `timings`, metrics with a clock in them."""
    ROUND_FINISHED = "round_finished"
    """detail: the `RoundResult` as JSON, and `seconds` by phase."""
    REMOVED = "removed"
    """Retention removed something; detail: `what` (policy, round, optimizer), `number`."""
    WARNING = "warning"
    """detail: `message`."""
    RUN_FINISHED = "run_finished"
    RUN_FAILED = "run_failed"
    """detail: `error`, `message`."""
    RUN_INTERRUPTED = "run_interrupted"


class Event(SealedLine):
    """One thing that happened. Example: `Event(at="2026-11-21T09:00:00Z", kind="phase_started",
    round=1, phase="train")`.
    """

    at: str
    kind: EventKind
    round: int | None = None
    phase: str | None = None
    detail: dict[str, Json] = Field(default_factory=dict)


class Throughput:
    """Adds up what stages did in how many busy seconds, over all drivers of a run, by round."""

    def __init__(self) -> None:
        self._tokens: dict[int, dict[str, float]] = {}
        self._busy: dict[int, dict[str, float]] = {}
        self._timings: dict[int, dict[str, float]] = {}

    def add(self, event: Event) -> None:
        """Take what an event of the kind says; others are passed over."""
        if event.kind is not EventKind.THROUGHPUT or event.round is None:
            return
        stages = event.detail.get("stages")
        for name, row in stages.items() if isinstance(stages, dict) else ():
            if not isinstance(row, dict):
                continue
            for total, key in ((self._tokens, "tokens"), (self._busy, "seconds")):
                of_round = total.setdefault(event.round, {})
                of_round[name] = of_round.get(name, 0.0) + _plain_number(row.get(key))
        timings = event.detail.get("timings")
        for name, value in timings.items() if isinstance(timings, dict) else ():
            self._timings.setdefault(event.round, {})[name] = _plain_number(value)

    def of(self, round_index: int) -> dict[str, float]:
        """`throughput/<stage>` in tokens per second, and the timings under their own names."""
        busy, tokens = self._busy.get(round_index, {}), self._tokens.get(round_index, {})
        rates = {f"throughput/{n}": round(tokens[n] / s, 1) for n, s in busy.items() if s > 0}
        return {**rates, **self._timings.get(round_index, {})}


def _plain_number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


Observer = Callable[[Event], None]


class EventLog:
    """Appends events to the run folder and hands them to observers, in order."""

    def __init__(self, path: Path, observers: Sequence[Observer] = ()) -> None:
        self.path = path
        self.observers = list(observers)
        self.reported_rounds: set[int] = set()
        self._seconds: dict[int, dict[str, float]] = {}
        self._throughput = Throughput()
        self._lock = threading.Lock()  # the tracker's thread warns too
        self._unwritten: list[bytes] = []
        """Lines that the disk did not take; they go with the next one."""
        for event in read_events(path):
            self._remember(event)

    def emit(
        self,
        kind: EventKind,
        *,
        round_index: int | None = None,
        phase: str | None = None,
        **detail: Any,
    ) -> None:
        """Record one event. A progress event of a shard or step is not written, only observed."""
        event = Event(
            at=datetime.now(UTC).isoformat(),
            kind=kind,
            round=round_index,
            phase=phase,
            detail=redact_values(detail),
        ).sealed()
        with self._lock:
            if kind not in (EventKind.SHARD_STAGE_FINISHED, EventKind.TRAINING_STEP):
                self._write(event)
                self._remember(event)
            for observer in self.observers:
                observer(event)

    def _write(self, event: Event) -> None:
        self._unwritten.append(event.model_dump_json().encode() + b"\n")
        try:
            files.append_unsynced(self.path, b"".join(self._unwritten))
            self._unwritten.clear()
        except (
            OSError,
            PawlError,
        ) as error:  # for people: what decides is the journal, which does raise
            if len(self._unwritten) == 1:
                logger.warning("%s cannot be written: %s", self.path, error)
            del self._unwritten[:-MOST_UNWRITTEN]

    def phase_seconds(self, round_index: int) -> dict[str, float]:
        """Wall seconds of each phase of a round; a phase that was done twice counts twice."""
        return dict(self._seconds.get(round_index, {}))

    def throughput(self, round_index: int) -> dict[str, float]:
        """Tokens per second of each stage of a round, and what else its trainer says of time."""
        return self._throughput.of(round_index)

    def _remember(self, event: Event) -> None:
        if event.round is None:
            return
        self._throughput.add(event)
        if event.kind is EventKind.ROUND_FINISHED:
            self.reported_rounds.add(event.round)
        seconds = event.detail.get("seconds")
        if (
            event.kind is EventKind.PHASE_FINISHED
            and event.phase is not None
            and isinstance(seconds, (int, float))
        ):
            of_round = self._seconds.setdefault(event.round, {})
            of_round[event.phase] = of_round.get(event.phase, 0.0) + float(seconds)

    def warn(self, message: str, *, round_index: int | None = None) -> None:
        message = redact_secrets(message)
        logger.warning(message)
        self.emit(EventKind.WARNING, round_index=round_index, message=message)


def read_events(path: Path) -> list[Event]:
    """All events of a run that can be read; a line that is being written, or was torn, is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [event for line in lines if (event := parse_event(line)) is not None]


def parse_event(line: str) -> Event | None:
    """The event of a line; None when it cannot be read, or changed since it was written."""
    try:
        event = Event.model_validate(json.loads(line))
    except (ValueError, RecursionError):  # events are for people: a damaged line is passed over
        return None
    return event if event.is_as_sealed() else None
