"""The journal: append-only, fsynced JSON lines, one per finished phase. Resume is reading it.

Each line is sealed with a digest of itself and of the line before, so that a changed, lost or moved line is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.rounds.phases import Phase
from policies import files
from policies.errors import CorruptStateError
from policies.records import Json, Record, RoundResult

R = TypeVar("R", bound=Record)


class JournalEntry(Record):
    """One finished phase. Example: `JournalEntry(round=1, phase="draw", result={"num_prompts": 48, ...})`."""

    round: int
    phase: Phase
    result: dict[str, Json]
    seal: str = ""
    """sha256 of this entry and the seal before it. Empty: written by an older Pawl."""

    def sealed_after(self, before: str) -> JournalEntry:
        """The same entry with the seal that follows on `before`."""
        text = before + self.model_dump_json(exclude={"seal"})
        return self.model_copy(update={"seal": hashlib.sha256(text.encode()).hexdigest()})


class Journal:
    """Finished phases in order. One writer: the driver; `guard` raises when this process is no longer it."""

    def __init__(self, path: Path, guard: Callable[[], None] | None = None) -> None:
        self.path = path
        self.guard = guard
        self.entries = _read(path)
        self._index = {(e.round, e.phase): e for e in self.entries}

    def find(self, round_index: int, phase: Phase, kind: type[R]) -> R | None:
        """What the phase left, or None when it has not finished."""
        entry = self._index.get((round_index, phase))
        return None if entry is None else kind.model_validate(entry.result)

    def append(self, round_index: int, phase: Phase, result: Record) -> None:
        """Record a finished phase durably, before anything that builds on it happens."""
        entry = JournalEntry(
            round=round_index, phase=phase, result=result.model_dump(mode="json")
        ).sealed_after(self.entries[-1].seal if self.entries else "")
        if self.guard is not None:
            self.guard()
        files.append_line(self.path, entry.model_dump_json().encode() + b"\n")
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


def _read(path: Path) -> list[JournalEntry]:
    """Read all whole lines; a last line that was cut off while being written is dropped from the file.

    Raises:
        CorruptStateError: a whole line cannot be read, or its seal does not follow: the file was edited or damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole, _, rest = content.rpartition(b"\n")
    if rest:
        files.cut(path, len(content) - len(rest))
    entries: list[JournalEntry] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            entry = JournalEntry.model_validate(json.loads(line))
            before = entries[-1].seal if entries else ""
            if (entry.seal or before) and entry != entry.sealed_after(before):
                raise ValueError("its seal does not follow: a line was changed, removed or moved")
            entries.append(entry)
        except (ValidationError, ValueError) as error:
            raise CorruptStateError(
                f"{path}:{number} cannot be read: {error}. Fix: restore the journal from a copy, or start a new run"
            ) from error
    return entries
