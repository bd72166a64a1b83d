"""Signs of life: a worker that is busy says in a small file how far its call has come.

A busy actor cannot answer questions, so it writes and the driver reads. `report_progress()` may stand in any loop of
work: it costs a clock reading, writes at most once a second, and does nothing where nobody asked for reports.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from policies.base.records import Record
from policies.storage.files import reserve

WRITE_SECONDS = 1.0
"""Shortest time between two writes, and before the first: short calls leave no file."""


class SignOfLife(Record):
    """The last report of a worker. Example: `SignOfLife(host="node-1", pid=71, beats=240, counts={"tokens": 9120})`."""

    host: str
    pid: int
    beats: int
    counts: dict[str, float]
    """Sums since the call began: `tokens`, `steps`, `verdicts`."""


class _Report:
    """The report on one call; several threads of the worker may report."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written = time.monotonic()
        self._beats = 0
        self._counts: dict[str, float] = {}

    def report_progress(self, counts: dict[str, float]) -> None:
        with self._lock:
            self._beats += 1
            for name, value in counts.items():
                self._counts[name] = self._counts.get(name, 0.0) + value
            now = time.monotonic()
            if now - self._written < WRITE_SECONDS:
                return
            self._written = now
            sign = SignOfLife(
                host=socket.gethostname(), pid=os.getpid(), beats=self._beats, counts=self._counts
            )
            write_unsynced(self._path, sign.model_dump())


_current: _Report | None = None


@contextlib.contextmanager
def reporting(path: str) -> Iterator[None]:
    """Report on the work inside to `path`; an empty path is nobody's."""
    global _current
    before = _current
    _current = _Report(Path(path)) if path else None
    try:
        yield
    finally:
        _current = before


def report_progress(**counts: float) -> None:
    """The work goes on: `report_progress(tokens=128)`. Counts are added up."""
    report = _current
    if report is not None:
        report.report_progress(counts)


def read_sign(path: Path) -> SignOfLife | None:
    """Return what was last said in `path`, if anything."""
    try:
        return SignOfLife.model_validate_json(path.read_bytes())
    except (
        OSError,
        ValueError,
    ):  # nothing was said yet, or on a file system that shows half a rename
        return None


def write_unsynced(path: Path, value: Any) -> None:
    """Replace a file whole, without fsync: it is for onlookers, and no run is resumed from it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # a full disk ends a run where it matters, not here
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        reserve(scratch)
        scratch.write_text(json.dumps(value), encoding="utf-8")
        scratch.replace(path)
