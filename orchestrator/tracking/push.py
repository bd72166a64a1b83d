"""From spooled lines to a tracking server: what lands where, and what happens while the server is away.

`TrackingSink` is the seam: MLflow behind it in `orchestrator.tracking.mlflow_client`, a memory in
`orchestrator.tracking.memory`. Every operation may be repeated: a line counts as sent only after its
last operation, so a crash in between sends the line again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.report import write_report
from orchestrator.runs.tables import Row, example_rows, sample_rows
from orchestrator.tracking.metric_names import clean_metrics
from orchestrator.tracking.spool import (
    ArtifactLine,
    EndStatus,
    FinishLine,
    Line,
    RoundLine,
    SendLock,
    Spool,
    StartLine,
    StepsLine,
    TrackedRun,
    TrackingAnswered,
    TrackingRefused,
)
from policies.base.errors import PawlError, TrackingError, boundary
from policies.base.records import PolicyVersion

logger = logging.getLogger(__name__)

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """One value of one metric. Example: `Point("eval/pass_at_1", 0.39, step=1, at=1795251600000)`."""

    name: str
    value: float
    step: int
    at: int


class TrackingSink(Protocol):
    """The place where metrics land. `round_index` None means the run itself. Each call may be made twice.

    Raises:
        TrackingError: no answer; try again later.
        TrackingRefused: the answer is no, and will stay no.
    """

    def open_run(self, run: TrackedRun, at: int) -> None:
        """Find or create the run, add what is missing, and mark it as running."""

    def open_round(self, round_index: int, tags: Mapping[str, str], start: int) -> None:
        """Find or create the nested run of a round."""

    def metrics(self, round_index: int | None, points: Sequence[Point]) -> None:
        """Add values."""

    def table(self, round_index: int, name: str, rows: Sequence[Row]) -> None:
        """Set a table, replacing what has that name."""

    def artifact(self, path: Path, name: str) -> None:
        """Set a file of the run, replacing what has that name."""

    def register(self, round_index: int, policy: PolicyVersion) -> None:
        """Add a model version, unless the round has one."""

    def close(self, round_index: int | None, status: EndStatus, at: int, reason: str = "") -> None:
        """Mark a run as ended."""


class LineSender:
    """Sends lines in order and remembers how far it came."""

    def __init__(
        self,
        folder: RunFolder,
        spool: Spool,
        connect: Callable[[], TrackingSink],
        *,
        table_rows: int,
        warn: Warn,
    ) -> None:
        self._folder = folder
        self._spool = spool
        self._connect = connect
        self._table_rows = table_rows
        self._warn = warn
        self._sink: TrackingSink | None = None
        self._offset = spool.offset()
        self._refused: set[str] = set()

    @property
    def offset(self) -> int:
        return self._offset

    def send_all(self, keep_going: Callable[[], bool] = lambda: True) -> int:
        """Send every line that is there, and return how many that were.

        Raises:
            TrackingError: the server does not answer; what was sent before stays sent.
        """
        sent = 0
        for line, offset in self._spool.read(self._offset):
            if not keep_going():
                break
            if line is None:
                self._warn(f"a line of {self._spool.path} cannot be read and is left out")
            else:
                self._send(line)
            self._spool.save_offset(offset)
            self._offset = offset
            sent += 1
        return sent

    def _send(self, line: Line) -> None:
        sink = self._connected(line)
        if isinstance(line, StartLine):
            sink.open_run(line.run, line.at)
        elif isinstance(line, RoundLine):
            self._send_round(sink, line)
        elif isinstance(line, StepsLine):
            sink.open_round(line.round, {}, line.at)
            curves = [p for row in line.rows for p in _step_points(row, line.at)]
            self._attempt("training curves", lambda: sink.metrics(line.round, curves))
        elif isinstance(line, ArtifactLine):
            path = self._folder.path / line.path
            self._attempt(f"file {line.name}", lambda: sink.artifact(path, line.name))
        else:
            self._send_finish(sink, line)

    def _connected(self, line: Line) -> TrackingSink:
        """The sink, opened on the run that the lines before this one belong to."""
        if self._sink is None:
            sink = self._connect()
            started = self._last_start() if not isinstance(line, StartLine) else line
            if started is None:
                raise TrackingError(
                    f"{self._spool.path} does not say which run it belongs to. Fix: resume the run"
                )
            sink.open_run(started.run, started.at)
            self._sink = sink
        return self._sink

    def _last_start(self) -> StartLine | None:
        found = None
        for line, offset in self._spool.read():
            if offset > self._offset:
                break
            if isinstance(line, StartLine):
                found = line
        return found

    def _send_round(self, sink: TrackingSink, line: RoundLine) -> None:
        result, step = line.result, line.result.round
        values = {**result.metrics, **{f"seconds/{phase}": s for phase, s in line.seconds.items()}}
        points = [Point(n, v, step, line.at) for n, v in clean_metrics(values)[0].items()]
        curves = set(clean_metrics(dict.fromkeys(line.curves, 0.0))[0])
        tags = {
            "pawl.status": result.status.value,
            "pawl.reference": result.reference,
            "pawl.policy_before": str(result.before),
            "pawl.policy_after": str(result.after),
            "pawl.reason": result.reason,
        }
        sink.open_round(step, tags, line.at - int(1000 * sum(line.seconds.values())))
        self._attempt("metrics", lambda: sink.metrics(None, points))
        own = [p for p in points if p.name not in curves]
        own += [p for row in line.steps for p in _step_points(row, line.at)]
        self._attempt("metrics of the round", lambda: sink.metrics(step, own))
        for name, rows in self._tables(RoundFolder(self._folder.path / line.folder)):
            self._attempt(f"table {name}", partial(_send_table, sink, step, name, rows))
        if line.policy is not None:
            policy = line.policy
            self._attempt("policy version", lambda: sink.register(step, policy))
        sink.close(step, "FINISHED", line.at)
        self._send_report(sink)

    def _tables(self, folder: RoundFolder) -> list[tuple[str, Callable[[], list[Row]]]]:
        """Tables of a round by name; read only when they are sent. Round 0 has but the measurement."""
        limit = self._table_rows
        tables: list[tuple[str, Callable[[], list[Row]]]] = []
        if limit and folder.shards("trajectories"):
            tables.append(("samples.json", lambda: sample_rows(folder, limit)))
        if limit and folder.shards("examples"):
            tables.append(("pairs.json", lambda: example_rows(folder, limit)))
        if limit and folder.evaluation.shards("trajectories"):
            tables.append(
                ("evaluation_samples.json", lambda: sample_rows(folder.evaluation, limit))
            )
        return tables

    def _send_finish(self, sink: TrackingSink, line: FinishLine) -> None:
        self._send_report(sink)
        sink.close(None, line.status, line.at, line.reason)

    def _send_report(self, sink: TrackingSink) -> None:
        def send() -> None:
            for path in write_report(self._folder):
                sink.artifact(path, path.name)

        self._attempt("report", send)

    def _attempt(self, what: str, operation: Callable[[], None]) -> None:
        """Do one operation; what is refused or cannot be read is said once and left out, the rest goes on."""
        try:
            with boundary(TrackingRefused, what):
                operation()
        except PawlError as error:
            if isinstance(error, TrackingError) and not isinstance(error, TrackingRefused):
                raise
            if what not in self._refused:
                self._refused.add(what)
                self._warn(f"tracking left out the {what}: {error}. The run folder has it")


def _send_table(
    sink: TrackingSink, round_index: int, name: str, read: Callable[[], list[Row]]
) -> None:
    sink.table(round_index, name, read())


def _step_points(row: Mapping[str, float], at: int) -> list[Point]:
    values, _ = clean_metrics({name: value for name, value in row.items() if name != "step"})
    return [Point(name, value, int(row["step"]), at) for name, value in values.items()]


class SendingThread:
    """Runs a `LineSender` beside the driver; waits longer and longer while the server is away."""

    FIRST_DELAY = 1.0
    LONGEST_DELAY = 30.0

    def __init__(
        self, sender: LineSender, lock: SendLock, spool: Spool, *, where: str, warn: Warn
    ) -> None:
        self._sender = sender
        self._lock = lock
        self._spool = spool
        self._where = where
        self._warn = warn
        self._state = threading.Condition()
        self._sent = sender.offset
        self._stopping = False
        self._hurry = False
        self._poked = False
        self._away = ""
        """What was told last of a server that takes nothing."""
        self._answered_no = False
        """Whether the last attempt, made in a hurry, was refused: then nothing is gained by waiting."""
        self._thread = threading.Thread(target=self._run, name="pawl-tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poke(self) -> None:
        """Say that there is a new line."""
        with self._state:
            self._poked = True
            self._state.notify_all()

    def drain(self, timeout: float) -> bool:
        """Try everything that is left at once, wait at most `timeout`, and stop. True when all was sent."""
        with self._state:
            self._hurry = True
            self._state.notify_all()
            self._state.wait_for(
                lambda: self._sent >= self._spool.size() or self._answered_no, timeout
            )
            done = self._sent >= self._spool.size()
            self._stopping = True
            self._state.notify_all()
        self._thread.join(timeout=1.0)
        return done

    def _run(self) -> None:
        delay = self.FIRST_DELAY
        while True:
            with self._state:
                if self._stopping:
                    break
                self._poked = False
                hurried = self._hurry
            try:
                self._send_all()
            except TrackingError as error:
                self._failed(error)
                with self._state:
                    self._answered_no = hurried and isinstance(error, TrackingAnswered)
                    self._state.notify_all()
                self._wait(delay)
                delay = min(2 * delay, 2.0 if self._hurry else self.LONGEST_DELAY)
                continue
            delay = self.FIRST_DELAY
            self._answered()
            with self._state:
                self._sent = self._sender.offset
                self._state.notify_all()
                self._state.wait_for(lambda: self._poked or self._stopping)
        self._lock.release()

    def _send_all(self) -> None:
        if not self._lock.acquire():
            raise TrackingError("another process is sending this run's metrics")
        try:
            with boundary(TrackingError, "sending"):
                self._sender.send_all(keep_going=lambda: not self._stopping)
        except TrackingError:
            raise
        except PawlError as error:
            # A full disk under our own files is as good a reason to try again later.
            raise TrackingError(str(error)) from error

    def _wait(self, delay: float) -> None:
        """Wait `delay` seconds; shorter when the run ends meanwhile."""
        with self._state:
            hurried = self._hurry
            self._state.wait_for(lambda: self._stopping or (self._hurry and not hurried), delay)

    def _failed(self, error: TrackingError) -> None:
        logger.debug("tracking: %s", error)
        answered = isinstance(error, TrackingAnswered)
        kind = "refuses" if answered else "away"
        if self._away == kind:
            return
        self._away = kind
        if answered:
            self._warn(
                f"tracking server at {self._where} takes nothing: {error}. Metrics are kept in {self._spool.path}; "
                f"then `pawl resume {self._spool.folder.parent}` sends them"
            )
        else:
            self._warn(
                f"tracking server at {self._where} does not answer ({error}); metrics are kept in "
                f"{self._spool.path} and will be sent when it is back"
            )

    def _answered(self) -> None:
        if self._away:
            self._away = ""
            self._warn(
                f"tracking server at {self._where} answers again; all kept metrics were sent"
            )
