"""The journal: append-only, fsynced JSON lines, one per finished phase. Resume is reading it.

Each line is sealed with a digest of itself and of the line before. It counts once the head of the driver that wrote
it names it (`journal_reading` has the rule), so a line of a driver that has been replaced never counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orchestrator.runs.journal_reading import (
    EPOCHS,
    Head,
    Reading,
    identity_digest,
    read_heads,
    read_journal,
)
from orchestrator.runs.journal_reading import JournalEntry as JournalEntry
from orchestrator.runs.lease import Fence
from orchestrator.runs.phases import Phase
from policies.base.errors import LeaseError, StorageError
from policies.base.records import Record, RoundResult
from policies.storage import files
from policies.storage.checksums import with_seal

R = TypeVar("R", bound=Record)


class Journal:
    """Finished phases in order. One writer: the driver that holds the run, told by its `Fence`.

    With a fence the journal is taken over: what does not count is cut off its end, where the file system has locks,
    and the head of this epoch says from where on this driver writes. Without one it is only read, and a file in a
    folder that nobody ever claimed can be added to.
    """

    def __init__(self, path: Path, guard: Callable[[], None] | None = None) -> None:
        """Read what counts.

        Raises:
            CorruptStateError: a line that counts was lost or changed.
            LeaseError: another driver has the run.
        """
        self.path = path
        self.guard = guard
        self._fence = guard if isinstance(guard, Fence) else None
        self._began = 0
        self._is_behind = False
        self._identity = identity_digest(path.parent)
        reading = read_journal(path) if self._fence is None else self._take_over(self._fence)
        self.entries = list(reading.entries)
        self.remarks = (*reading.damage, *reading.notes)
        """What lay in the file and does not count."""
        self._index = {(e.round, e.phase): e for e in self.entries}

    def find(self, round_index: int, phase: Phase, kind: type[R]) -> R | None:
        """Return what the phase left, or None when it has not finished."""
        entry = self._index.get((round_index, phase))
        return None if entry is None else kind.model_validate(entry.result)

    def append(self, round_index: int, phase: Phase, result: Record) -> None:
        """Record a finished phase durably, before anything that builds on it happens.

        Raises:
            LeaseError: another driver has the run. The line does not count, or the other one has read it.
            StorageError: the disk refused, now or before: `pawl resume` finds out what is there.
        """
        if self._is_behind:
            raise StorageError(
                f"{self.path} could not be written before, and is not added to. Fix: `pawl resume`"
            )
        entry = JournalEntry(
            round=round_index, phase=phase, result=result.model_dump(mode="json")
        ).sealed_after(self._last)
        line = entry.model_dump_json().encode() + b"\n"
        self._is_behind = True  # until the line is known to be there
        if self._fence is None:
            self._append_unclaimed(line)
        else:
            self._append_held(self._fence, entry, line)
        self._is_behind = False
        self.entries.append(entry)
        self._index[(round_index, phase)] = entry

    def results(self) -> list[RoundResult]:
        """Finished rounds, in order."""
        found = []
        for entry in self.entries:
            if entry.phase is Phase.ACCEPT:
                found.append(RoundResult.model_validate(entry.result))
        return found

    def next_round(self) -> int:
        """The round to work on: after the last finished one; 0 at the start."""
        return len(self.results())

    @property
    def _last(self) -> str:
        return self.entries[-1].seal if self.entries else ""

    def _take_over(self, fence: Fence) -> Reading:
        with fence.holding() as locked:
            reading = read_journal(self.path)
            again = fence.head_path.exists()  # opened before in this epoch
            own = read_heads(fence.path)[fence.epoch] if again else None
            self._began = len(reading.entries) if own is None else own.began
            fence()  # nobody has claimed since: whoever does will read at least what was read here
            size, whole = _size(self.path), len(reading.content)
            if locked and reading.in_place and size > whole:
                files.cut(self.path, whole)
            last = reading.entries[-1].seal if reading.entries else ""
            self._say(fence, len(reading.entries), last)
            return reading

    def _append_held(self, fence: Fence, entry: JournalEntry, line: bytes) -> None:
        with fence.holding() as locked:
            before = _size(self.path)
            if locked:
                files.append_line(self.path, line)
            else:
                self._append_unlocked(line, before)
            self._check_stands_alone(line, before)
            self._say(fence, len(self.entries) + 1, entry.seal)
            fence()  # before anything is built on the line: whoever claims from now on reads it

    def _append_unclaimed(self, line: bytes) -> None:
        if self.guard is not None:
            self.guard()
        if read_heads(self.path.parent / EPOCHS):
            raise LeaseError(
                f"{self.path} is of a run that drivers claim, and was opened without a claim: a line would not count. "
                "Fix: `pawl resume`"
            )
        before = _size(self.path)
        if before and not _tail(self.path, 0).endswith(b"\n"):  # nobody else writes here
            before = _tail(self.path, 0).rfind(b"\n") + 1
            files.cut(self.path, before)
        self._append_unlocked(line, before)
        self._check_stands_alone(line, before)

    def _append_unlocked(self, line: bytes, size: int) -> None:
        """Add a line where nobody can be kept out: nothing is ever cut off, half a line before it is ended."""
        if size and _tail(self.path, size - 1)[:1] != b"\n":
            line = b"\n" + line
        with files.storage(self.path):
            if not size:
                files.make_directory(self.path.parent)
            files.current().append(self.path, line)
            files.current().sync(self.path)
            if not size:
                files.current().sync_directory(self.path.parent)

    def _check_stands_alone(self, line: bytes, before: int) -> None:
        """Refuse to build on a line that ran into half a line of another driver, or is not all there.

        Raises:
            StorageError: it did.
        """
        tail = _tail(self.path, max(0, before - 1))
        if b"\n" + line in tail or (not before and tail.startswith(line)):
            return
        raise StorageError(
            f"{self.path} did not take a whole line. Set by: the place of the run folder. Fix: `pawl resume`"
        )

    def _say(self, fence: Fence, lines: int, last: str) -> None:
        """Say in this epoch's own file how far the journal goes: with it the lines count."""
        claim = hashlib.sha256(fence.claim_path.read_bytes()).hexdigest()
        head = Head(
            epoch=fence.epoch,
            began=self._began,
            lines=lines,
            last=last,
            claim=claim,
            identity=self._identity,
        )
        files.write_json(fence.head_path, with_seal(head.model_dump(mode="json", exclude={"seal"})))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> bytes:
    with path.open("rb") as handle:
        handle.seek(start)
        return handle.read()
