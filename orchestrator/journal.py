"""The journal: append-only, fsynced JSON lines, one per finished phase. Resume is reading it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.phases import Phase
from policies.errors import ResumeError
from policies.records import Json, Record, RoundResult

R = TypeVar("R", bound=Record)


class JournalEntry(Record):
    """One finished phase. Example: `JournalEntry(round=1, phase="draw", result={"num_prompts": 48, ...})`."""

    round: int
    phase: Phase
    result: dict[str, Json]


class Journal:
    """Finished phases in order. One writer: the driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = _read(path)
        self._index = {(e.round, e.phase): e for e in self.entries}

    def find(self, round_index: int, phase: Phase, kind: type[R]) -> R | None:
        """What the phase left, or None when it has not finished."""
        entry = self._index.get((round_index, phase))
        return None if entry is None else kind.model_validate(entry.result)

    def append(self, round_index: int, phase: Phase, result: Record) -> None:
        """Record a finished phase durably, before anything that builds on it happens."""
        entry = JournalEntry(round=round_index, phase=phase, result=result.model_dump(mode="json"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.write(entry.model_dump_json().encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
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
        ResumeError: a line in the middle cannot be read: the file was edited or damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole, _, rest = content.rpartition(b"\n")
    if rest:
        with path.open("r+b") as handle:
            handle.truncate(len(content) - len(rest))
            os.fsync(handle.fileno())
    entries: list[JournalEntry] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            entries.append(JournalEntry.model_validate(json.loads(line)))
        except (ValidationError, ValueError) as error:
            raise ResumeError(
                f"{path}:{number} cannot be read: {error}. Fix: restore the journal from a copy, or start a new run"
            ) from error
    return entries
