"""The driver's side of tracking: the interface it calls, and the one that writes every call to the spool.

Knows nothing of MLflow; see `orchestrator.tracking.mlflow_client`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.config.tracking_uri import redact
from orchestrator.runs.folder import RoundFolder, RunFolder
from orchestrator.runs.report import write_report
from orchestrator.tracking.push import LineSender, SendingThread, TrackingSink, Warn
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
)
from policies.base.errors import PawlError, PolicyStoreError
from policies.base.records import PolicyVersion, RoundResult
from policies.storage.policy_store import PolicyStore

FINISH_TIMEOUT = 30.0
"""Seconds that the end of a run waits for what has not been sent yet."""


class Tracker(Protocol):
    """The interface that the driver tells. No call waits for a server, except `finish`, and that one not for long."""

    def start(self, run: TrackedRun) -> None:
        """The run starts, or goes on after a resume."""

    def round_finished(
        self, result: RoundResult, seconds: dict[str, float], folder: RoundFolder
    ) -> None:
        """A round is in the journal. A second call for the same round does nothing, so resume may repeat it."""

    def steps(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Training curves, one row per optimizer step; steps that were told before are passed over.

        `round_finished` reads the round's whole log itself: call this only to see a long update live.
        """

    def artifact(self, path: Path, name: str) -> None:
        """A file that belongs to the run."""

    def finish(self, status: EndStatus, reason: str = "") -> None:
        """The run ends; also writes the report."""


class NullTracker:
    """Tracking is off: the run folder, with its report, is all there is."""

    def __init__(self, folder: RunFolder, *, on_warning: Warn) -> None:
        self._folder = folder
        self._warn = on_warning

    def start(self, run: TrackedRun) -> None:
        pass

    def round_finished(
        self, result: RoundResult, seconds: dict[str, float], folder: RoundFolder
    ) -> None:
        pass

    def steps(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def artifact(self, path: Path, name: str) -> None:
        pass

    def finish(self, status: EndStatus, reason: str = "") -> None:
        _try_report(self._folder, self._warn)


class SpooledTracker:
    """Writes every call to the spool and lets a thread send it."""

    def __init__(
        self,
        folder: RunFolder,
        connect: Callable[[], TrackingSink],
        *,
        where: str,
        table_rows: int,
        register_policy: bool,
        on_warning: Warn,
        finish_timeout: float | None = None,
        max_backlog_bytes: int = 64 * 10**6,
    ) -> None:
        """Start the sending thread; it goes on where an earlier process of the run stopped.

        Args:
            folder: the run.
            connect: called in the thread, once, when there is something to send.
            where: the server's address for messages, without its password.
            table_rows: rows of each table.
            register_policy: register every accepted policy.
            on_warning: also called from the thread.
            max_backlog_bytes: what may wait for a server that is away; above it training curves are left out.
            finish_timeout: seconds that `finish` waits for what has not been sent yet; null takes `FINISH_TIMEOUT`.
        """
        self._folder = folder
        self._warn = on_warning
        self._finish_timeout = FINISH_TIMEOUT if finish_timeout is None else finish_timeout
        self._register = register_policy
        self._spool = Spool(folder.tracking)
        self._max_backlog_bytes = max_backlog_bytes
        self._told_backlog = self._told_unwritten = False
        self._started = False
        self._rounds: set[int] = set()
        self._steps: dict[int, int] = {}
        self._curves: dict[int, set[str]] = {}
        self._not_finite: set[str] = set()
        self._remember()
        sender = LineSender(folder, self._spool, connect, table_rows=table_rows, warn=on_warning)
        lock = SendLock(folder.tracking)
        self._thread = SendingThread(sender, lock, self._spool, where=where, warn=on_warning)
        self._thread.start()

    def start(self, run: TrackedRun) -> None:
        self._started = True
        self._append(StartLine(at=_now(), run=run))

    def round_finished(
        self, result: RoundResult, seconds: dict[str, float], folder: RoundFolder
    ) -> None:
        if result.round in self._rounds:
            return
        self._rounds.add(result.round)
        steps = self._new_steps(result.round, _read_steps(folder.train_log))
        steps = () if self._too_much_waits() else steps
        self._append(
            RoundLine(
                at=_now(),
                result=result.model_copy(update={"metrics": self._finite(result.metrics)}),
                seconds=self._finite(seconds),
                folder=os.path.relpath(folder.path, self._folder.path),
                steps=steps,
                curves=tuple(sorted(self._curves.get(result.round, ()))),
                policy=self._accepted(result) if self._register else None,
            )
        )

    def steps(self, round_index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        new = self._new_steps(round_index, rows)
        if new and not self._too_much_waits() and round_index not in self._rounds:
            self._append(StepsLine(at=_now(), round=round_index, rows=new))

    def artifact(self, path: Path, name: str) -> None:
        self._append(ArtifactLine(at=_now(), path=str(path.absolute()), name=name))

    def finish(self, status: EndStatus, reason: str = "") -> None:
        _try_report(self._folder, self._warn)
        if not self._started:  # it failed before anything was known of it: there is no run to end
            self._thread.drain(0.0)
            return
        self._append(FinishLine(at=_now(), status=status, reason=redact(reason)))
        if not self._thread.drain(self._finish_timeout):
            left = self._spool.left()
            self._warn(
                f"{left} tracking entries could not be sent in {self._finish_timeout:g} s; they are kept in "
                f"{self._spool.path}, and `pawl resume {self._folder.path}` sends them"
            )

    def _append(self, line: Line) -> None:
        try:
            self._spool.append(line)
            self._told_unwritten = False
        except (OSError, PawlError) as error:  # a run never ends on its tracking
            if not self._told_unwritten:
                self._warn(
                    f"{self._spool.path} cannot be written ({error}); what is to be tracked is kept in memory until it "
                    "can, and rounds are told again by `pawl resume`"
                )
            self._told_unwritten = True
        self._thread.poke()

    def _too_much_waits(self) -> bool:
        """Tell whether curves are left out: a server that stays away must not fill the disk."""
        if self._spool.backlog_bytes() <= self._max_backlog_bytes:
            return False
        if not self._told_backlog:
            self._told_backlog = True
            self._warn(
                f"over {self._max_backlog_bytes / 1e6:g} MB wait for the tracking server (tracking.max_backlog_mb): "
                "training curves are left out until it answers; metrics of rounds are kept, and the run folder has all"
            )
        return True

    def _remember(self) -> None:
        """Read what an earlier process of this run told already."""
        for line, _ in self._spool.read():
            self._started |= isinstance(line, StartLine)
            if isinstance(line, RoundLine):
                self._rounds.add(line.result.round)
            elif isinstance(line, StepsLine):
                self._new_steps(line.round, line.rows)

    def _new_steps(
        self, round_index: int, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], ...]:
        """The rows whose step has not been told, remembered as told."""
        known = self._steps.get(round_index, -1)
        new = [
            row for row in rows if isinstance(row.get("step"), (int, float)) and row["step"] > known
        ]
        kept = tuple(self._finite(row) for row in new)
        if kept:
            self._steps[round_index] = max(int(row["step"]) for row in new)
            self._curves.setdefault(round_index, set()).update(*kept)
        return kept

    def _finite(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The values that a curve can show; what is left out is said once per name."""
        kept = {
            n: float(v)
            for n, v in values.items()
            if isinstance(v, (int, float)) and math.isfinite(v)
        }
        for name in sorted(values.keys() - kept.keys() - self._not_finite):
            self._not_finite.add(name)
            self._warn(
                f"metric {name} is {values[name]!r}, which no curve can show; such values are left out"
            )
        return kept

    def _accepted(self, result: RoundResult) -> PolicyVersion | None:
        if result.after == result.before:
            return None
        try:
            return PolicyStore(self._folder.policies).get(result.after)
        except PolicyStoreError as error:
            self._warn(f"policy version {result.after} is not registered: {error}")
            return None


def _try_report(folder: RunFolder, warn: Warn) -> None:
    """Write the report; a run that ends well or badly never ends on its report."""
    try:
        write_report(folder)
    except (PawlError, OSError) as error:
        warn(f"the report of {folder.path} was not written: {error}")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _read_steps(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an update's log; lines that cannot be read are passed over."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
