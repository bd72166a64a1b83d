"""The spool: everything that is to be tracked, as JSON lines on disk before anything is sent.

The driver only ever appends to this file, so it never waits for a server. `<run>/tracking/` holds

    spool.jsonl    one line per call of the driver; written and fsynced before the call returns
    offset.json    how far the lines have been sent; a lost one only means that they are sent again
    runs.json      the ids that the server gave to our runs
    lock           held by the one process that sends
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from policies.base.errors import TrackingError
from policies.base.records import PolicyVersion, Record, RoundResult
from policies.storage import files
from policies.storage.artifacts import write_json
from policies.storage.checksums import SealedLine, read_sealed, with_seal
from policies.storage.files import storage

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingRefused(TrackingError):
    """The tracking server answered that it will never take this; sending it again is of no use."""


class TrackingAnswered(TrackingError):
    """The tracking server answers and takes nothing until somebody does what the message says: worth asking again
    later, not worth waiting for.
    """


class TrackedRun(Record):
    """Facts of a run when it starts.

    Example: `TrackedRun(run_id="9f3c..", name="quickstart-1", experiment="quickstart", params={...}, tags={...})`.
    """

    run_id: str = Field(pattern=r"^[\w.-]{1,200}$")
    """Unique and stable over resumes: `run_id` of the run's `run.json`. Finds the run again on the server."""
    name: str
    experiment: str
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    resumed: bool = False


class StartLine(SealedLine):
    """The driver started or resumed."""

    op: Literal["start"] = "start"
    at: int
    """Milliseconds since 1970; a line sent twice carries the same time, so the server sees one value."""
    run: TrackedRun


class RoundLine(SealedLine):
    """A round finished. Samples and examples are read from its folder when the line is sent."""

    op: Literal["round"] = "round"
    at: int
    result: RoundResult
    seconds: dict[str, float]
    folder: str
    """Round folder, relative to the run folder."""
    steps: tuple[dict[str, float], ...] = ()
    """One row per optimizer step, as far as they were not told while the update ran."""
    curves: tuple[str, ...] = ()
    """Metrics that this round also has step by step: its own run shows the curve in place of the total."""
    policy: PolicyVersion | None = None
    """The version to register, if the run registers its policies and this round made one."""


class StepsLine(SealedLine):
    """Curves of an update that still runs: one row per optimizer step."""

    op: Literal["steps"] = "steps"
    at: int
    round: int
    rows: tuple[dict[str, float], ...]


class ArtifactLine(SealedLine):
    """A file for the run. `path` is relative to the run folder where it lies inside."""

    op: Literal["artifact"] = "artifact"
    at: int
    path: str
    name: str


class FinishLine(SealedLine):
    """The driver ended."""

    op: Literal["finish"] = "finish"
    at: int
    status: EndStatus
    reason: str


Line = StartLine | RoundLine | StepsLine | ArtifactLine | FinishLine
_LINES: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="op")])


def _line(data: bytes) -> Line | None:
    try:
        line = _LINES.validate_json(data)
    except ValidationError:
        return None
    return line if line.is_as_sealed() else None


def is_line(data: bytes) -> bool:
    """Tell whether a line of the spool is as it was written."""
    return _line(data) is not None


class Spool:
    """The lines of one run. One writer (the driver) and one reader (the sending thread)."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self.path = folder / "spool.jsonl"
        self.offset_path = folder / "offset.json"
        self._lock = threading.Lock()
        self._unwritten: list[bytes] = []
        """Lines that the disk did not take; they go with the next one."""
        self._end: int | None = None
        """Bytes of durable lines, for the writer: what is behind them may be cut off again, so it is not sent."""
        files.make_directory(folder)
        if writes:
            self._end = files.cut_torn_line(self.path)

    def append(self, line: Line) -> None:
        """Make a line durable, and those that could not be written before it.

        Raises:
            StorageError: it could not be written; it is kept, and goes with the next one.
        """
        with self._lock:
            self._unwritten.append(line.sealed().model_dump_json().encode() + b"\n")
            files.append_line(self.path, b"".join(self._unwritten))
            self._unwritten.clear()
            self._end = self.path.stat().st_size

    def read(self, offset: int = 0) -> Iterator[tuple[Line | None, int]]:
        """Whole lines from `offset` on, each with the offset behind it; None for one that cannot be read."""
        end = self.size()
        if end <= offset:
            return
        with self.path.open("rb") as handle:
            handle.seek(offset)
            for data in handle:
                offset += len(data)
                if not data.endswith(b"\n") or offset > end:
                    return
                yield _line(data), offset

    def size(self) -> int:
        """Bytes that can be sent."""
        if self._end is not None:
            return self._end
        return self.path.stat().st_size if self.path.exists() else 0

    def offset(self) -> int:
        """Tell how far the lines have been sent; 0 when that is not known."""
        try:
            value: Any = read_sealed(self.offset_path.read_bytes())["offset"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        return value if isinstance(value, int) and 0 <= value <= self.size() else 0

    def save_offset(self, offset: int) -> None:
        write_json(self.offset_path, with_seal({"offset": offset}))

    def backlog_bytes(self) -> int:
        """Size of the lines that have not been sent."""
        return self.size() - self.offset() + sum(map(len, self._unwritten))

    def left(self) -> int:
        """Lines that have not been sent."""
        return sum(1 for _ in self.read(self.offset()))


class SendLock:
    """Held by the one process that sends a run's lines; given back by the system when it dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock, or say that another process has it."""
        if self._descriptor is not None:
            return True
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with storage(self._path):
            descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
