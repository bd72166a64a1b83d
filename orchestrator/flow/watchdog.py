"""Watches which worker does what since when: kept by the driver, shown by `pawl status`, and ended when nothing moves.

`WatchedCluster` stands before the real cluster. It remembers every open call, reads the workers' signs of life
(`workers.cluster.heartbeat`), writes both to `<run>/activity.json` for onlookers, and gives up a worker that is silent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.runs.folder import RunFolder
from workers.cluster.heartbeat import SignOfLife, read_sign, write_unsynced
from workers.cluster.seam import NO_FILES, Call, Cluster, Files, Group, GroupSpec

WRITE_SECONDS = 1.0
"""Shortest time between two writes of `activity.json`."""


@dataclass(eq=False)
class OpenCall:
    """A call that has not been answered."""

    call: Call
    reports: bool
    """Whether its worker gives signs of life while it works; only then silence means something."""
    report: Path
    since: float
    """When it was handed in, then when it began to run; on the monotonic clock."""
    running: bool = False
    sign: SignOfLife | None = None
    last_sign: float = 0.0
    """When the last sign of life was seen, on the monotonic clock."""

    def look(self, now: float) -> None:
        """See whether it has begun, and whether its worker has said something new."""
        if self.call.running and not self.running:
            self.running, self.since, self.last_sign = True, now, now
        if self.running:
            sign = read_sign(self.report)
            if sign is not None and sign != self.sign:
                self.sign, self.last_sign = sign, now

    def row(self, now: float) -> dict[str, Any]:
        """The call for `activity.json`."""
        who, _, what = self.call.label.partition(": ")
        return {
            "worker": who,
            "call": what,
            "standing": self.call.standing(),
            "running": self.running,
            "seconds": round(now - self.since, 1),
            "quiet_seconds": round(now - self.last_sign, 1) if self.running else None,
            "counts": {} if self.sign is None else dict(self.sign.counts),
            "process": None if self.sign is None else f"{self.sign.host}:{self.sign.pid}",
        }


class Watch:
    """The open calls of a driver."""

    def __init__(
        self, folder: RunFolder, silence_seconds: float, on_warning: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._silence_seconds = silence_seconds
        self._warn = on_warning
        self._open: dict[Call, OpenCall] = {}
        self._numbers = itertools.count(1)
        self._written = -WRITE_SECONDS
        self.clear()

    def next_report(self) -> Path:
        """A path for the signs of life of the next call."""
        return self._folder.activity_reports / f"{os.getpid()}-{next(self._numbers)}.json"

    def opened(self, call: Call, report: Path, *, reports: bool) -> None:
        self._open[call] = OpenCall(call, reports, report, time.monotonic())
        self.write_sometimes()

    def closed(self, call: Call) -> None:
        known = self._open.pop(call, None)
        if known is not None:
            with contextlib.suppress(FileNotFoundError):  # a short call leaves none
                known.report.unlink()

    def silent(self) -> list[tuple[Call, str]]:
        """Calls whose workers have not moved for too long, each with the reason to give up its worker."""
        now = time.monotonic()
        found = []
        for each in self._open.values():
            each.look(now)
            quiet = now - each.last_sign
            if each.running and each.reports and quiet > self._silence_seconds:
                so_far = ", ".join(f"{n:g} {what}" for what, n in each.row(now)["counts"].items())
                found.append(
                    (
                        each.call,
                        f"no sign of life for {quiet:.0f} s ({so_far or 'nothing done so far'}). Set by: "
                        f"cluster.silence_timeout_seconds ({self._silence_seconds:g}). Fix: look at the worker's log "
                        "in Ray's session folder; raise the setting if one step of its work is just that slow",
                    )
                )
        return found

    def gave_up(self, call: Call, reason: str) -> None:
        self._warn(f"{call.label}: {reason}. Its worker is ended and the work is handed out again")
        known = self._open.get(call)
        if known is not None:  # said once
            known.last_sign = time.monotonic()

    def write_sometimes(self) -> None:
        """Tell onlookers, at most once a second."""
        now = time.monotonic()
        if now - self._written < WRITE_SECONDS:
            return
        self._written = now
        for each in self._open.values():
            each.look(now)
        write_unsynced(
            self._folder.activity,
            {
                "at": datetime.now(UTC).isoformat(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "calls": [each.row(now) for each in self._open.values()],
            },
        )

    def clear(self) -> None:
        """Leave nothing behind: what stood there was of an earlier driver, or is over."""
        with contextlib.suppress(FileNotFoundError):
            self._folder.activity.unlink()
        shutil.rmtree(self._folder.activity_reports, ignore_errors=True)


class WatchedGroup:
    """A group whose calls are remembered until they are answered."""

    def __init__(self, inner: Group, watch: Watch, reports: Collection[str]) -> None:
        self.inner = inner
        self._watch = watch
        self._reports = reports

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def size(self) -> int:
        return self.inner.size

    def submit(
        self,
        method: str,
        *args: Any,
        worker: int | None = None,
        label: str = "",
        report: str = "",
        files: Files = NO_FILES,
    ) -> Call:
        path = Path(report) if report else self._watch.next_report()
        call = self.inner.submit(
            method, *args, worker=worker, label=label, report=str(path), files=files
        )
        self._watch.opened(call, path, reports=method in self._reports)
        return call

    def ready(self) -> list[int]:
        return self.inner.ready()

    def restart_with(self, files: Files, /, **kwargs: Any) -> None:
        self.inner.restart_with(files, **kwargs)

    def pids(self) -> list[int]:
        return self.inner.pids()


class WatchedCluster:
    """A cluster that tells what its workers do."""

    def __init__(self, inner: Cluster, watch: Watch) -> None:
        self.inner = inner
        self._watch = watch

    def gpus(self) -> float:
        return self.inner.gpus()

    def start_group(self, spec: GroupSpec) -> WatchedGroup:
        return WatchedGroup(self.inner.start_group(spec), self._watch, spec.reports)

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:
        self.inner.wait_ready(_unwrapped(groups), timeout_seconds)

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        for call, reason in self._watch.silent():
            self._watch.gave_up(call, reason)
            self.inner.abandon(call, reason)
        self._watch.write_sometimes()
        return self.inner.wait_any(calls, timeout_seconds)

    def result(self, call: Call, timeout_seconds: float) -> Any:
        try:
            return self.inner.result(call, timeout_seconds)
        finally:
            self._watch.closed(call)

    def abandon(self, call: Call, reason: str) -> None:
        self.inner.abandon(call, reason)

    def close(self) -> None:
        self.inner.close()
        self._watch.clear()


def _unwrapped(groups: Iterable[Group]) -> list[Group]:
    return [g.inner if isinstance(g, WatchedGroup) else g for g in groups]
