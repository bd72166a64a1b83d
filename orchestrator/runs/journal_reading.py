"""The one rule that says which lines of a journal count, for every possible content of the file. Never writes.

`<run>/epochs/000003.head` is where the driver of epoch 3 says how far the journal goes: so many lines, the last with
this seal. Only that driver writes it, after each of its lines, and once when it takes the run over. The newest head
decides: the lines that lead to its seal count. A line that a replaced driver adds, or one that was cut off while it was
written, is in no such chain wherever it stands, and is passed over with a note; a line of the chain that was lost,
changed or moved is damage. Who wrote a line is told by the heads: epoch 3 wrote what lies between `began` and `lines`.

A journal without heads (by an older Pawl, or fetched from a bucket, where they do not go) is read line by line, and
every line must follow on the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from orchestrator.runs.phases import Phase
from policies.base.errors import CorruptStateError
from policies.base.records import Json, Record
from policies.storage.checksums import read_sealed
from policies.storage.files import raise_if_disk_failed

EPOCHS = "epochs"
HEAD_SUFFIX = ".head"
BEAT_SUFFIX = ".beat"


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


class Head(Record):
    """One driver's word on how far the journal goes. Example: `Head(epoch=3, began=12, lines=14, last="9f..")`."""

    epoch: int
    began: int
    """Lines that counted when this driver took the run over: those after them are its own."""
    lines: int
    """Lines that count."""
    last: str
    """Seal of the last of them; empty for none (or for one by an older Pawl)."""
    claim: str = ""
    """sha256 of the claim of the epoch."""
    identity: str = ""
    """sha256 of the run's `run.json` when this driver took it over: an edit of it is told. Empty: none was there."""
    seal: str = ""
    """sha256 of the rest of the head."""


@dataclass(frozen=True)
class Reading:
    """The contents of a journal, and what else lies in it."""

    entries: tuple[JournalEntry, ...] = ()
    """Finished phases, in order."""
    notes: tuple[str, ...] = ()
    """Lines that do not count, for a known and harmless reason."""
    damage: tuple[str, ...] = ()
    """What is wrong, although the run can go on: lines that nobody of this run wrote, a last line that was torn."""
    content: bytes = b""
    """The lines that count, as they are written."""
    in_place: bool = True
    """The file begins with `content`: whatever else lies in it lies behind."""


@dataclass
class _Line:
    number: int
    entry: JournalEntry
    depth: int
    parent: _Line | None
    raw: bytes


@dataclass
class _Lines:
    """The lines of a journal, each behind the one that its seal follows on."""

    path: Path
    known: list[_Line] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    """Numbers of lines that are no JSON: cut off, or damaged."""
    loose: list[int] = field(default_factory=list)
    """Numbers of lines that follow on no other."""
    why: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, raw: bytes) -> None:
        """Take one line of the file."""
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            self.torn.append(number)
            self.why[number] = str(error)
            return
        try:
            entry = JournalEntry.model_validate(value)
        except ValidationError as error:
            self.loose.append(number)
            self.why[number] = str(error)
            return
        if entry.seal and raw != entry.model_dump_json().encode():
            self.loose.append(number)
            self.why[number] = "it is not as it was written: its seal is of other bytes"
            return
        for before in (*reversed(self.known), None):
            if self._follows(entry, before):
                depth = 1 if before is None else before.depth + 1
                self.known.append(_Line(number, entry, depth, before, raw))
                return
        self.loose.append(number)
        self.why[number] = "its seal does not follow: a line was changed, removed or moved"

    def _follows(self, entry: JournalEntry, before: _Line | None) -> bool:
        seal = "" if before is None else before.entry.seal
        if not entry.seal:  # by an older Pawl: only its place tells
            return before is (self.known[-1] if self.known else None) and not seal
        return entry == entry.sealed_after(seal)

    def damaged(self, number: int, why: str = "") -> CorruptStateError:
        """The error that names a line."""
        return CorruptStateError(
            f"{self.path}:{number} cannot be read: {why or self.why.get(number, 'it is missing')}. "
            "Fix: restore the journal from a copy, or start a new run"
        )


def read_journal(path: Path) -> Reading:
    """The lines of a journal that count. A driver may be writing to it meanwhile.

    Raises:
        CorruptStateError: a line that counts, or a head, was lost or changed.
    """
    epochs = path.parent / EPOCHS
    heads = read_heads(epochs)  # first: the journal only grows, so it has what they name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    is_newest = not heads or not (epochs / f"{max(heads) + 1:06d}.json").exists()
    return reading_of(content, heads, path, is_newest=is_newest)


def reading_of(
    content: bytes, heads: Mapping[int, Head], path: Path, *, is_newest: bool = True
) -> Reading:
    """Return which lines of `content` count under `heads`; `is_newest`: nobody claimed the run after the last of them.

    Raises:
        CorruptStateError: a line that counts was lost or changed.
    """
    if not heads:
        return _read_in_order(content, path)
    newest = heads[max(heads)]
    lines = _split(content, path)
    chain = _chain_to(newest, lines)
    if chain is None:
        return _without_last(newest, lines, content)
    counting = {line.number for line in chain}
    notes = [f"{path}:{n} was cut off while it was written: it does not count" for n in lines.torn]
    notes += [
        f"{path}:{line.number} was never taken up, or is of a driver that had been replaced: it does not count"
        for line in lines.known
        if line.number not in counting
    ]
    if not is_newest:
        _check_not_ahead(newest, chain, lines)
    foreign = [f"{path}:{n} is no line of this run: {lines.why[n]}" for n in lines.loose]
    return _reading(chain, content, notes, foreign)


def _reading(
    chain: Sequence[_Line], content: bytes, notes: Sequence[str] = (), damage: Sequence[str] = ()
) -> Reading:
    counting = b"".join(line.raw + b"\n" for line in chain)
    return Reading(
        entries=tuple(line.entry for line in chain),
        notes=tuple(notes),
        damage=tuple(damage),
        content=counting,
        in_place=content.startswith(counting),
    )


def _split(content: bytes, path: Path) -> _Lines:
    lines = _Lines(path)
    *whole, rest = content.split(b"\n")
    for number, raw in enumerate(whole, start=1):
        if raw:
            lines.add(number, raw)
    if rest:
        lines.torn.append(len(whole) + 1)
    return lines


def _chain_to(head: Head, lines: _Lines) -> list[_Line] | None:
    """The lines that lead to what `head` names, or None when they are not all there."""
    if head.lines == 0:
        return []
    for line in lines.known:
        if (line.depth, line.entry.seal) == (head.lines, head.last):
            return _up_to(line)
    return None


def _up_to(line: _Line | None) -> list[_Line]:
    chain = []
    while line is not None:
        chain.append(line)
        line = line.parent
    return chain[::-1]


def _without_last(head: Head, lines: _Lines, content: bytes) -> Reading:
    """A journal whose last line was torn after it had been taken up: its phase is done again, and `verify` tells.

    Raises:
        CorruptStateError: more than the end of the last line is missing.
    """
    deepest = max(lines.known, key=lambda line: line.depth, default=None)
    chain = _up_to(deepest)
    is_torn = bool(content) and not content.endswith(b"\n")
    if len(chain) == head.lines - 1 and is_torn and not lines.loose and len(lines.torn) == 1:
        number = lines.torn[0]
        damage = f"{lines.path}:{number} is cut off: its phase had finished and is done again"
        return _reading(chain, content, damage=[damage])
    wrong = sorted(lines.loose + [n for n in lines.torn if n in lines.why])
    if wrong:
        raise lines.damaged(wrong[0])
    why = (
        f"the driver of epoch {head.epoch} had finished {head.lines} phases, {len(chain)} are there"
    )
    raise lines.damaged(len(chain) + 1, why)


def _check_not_ahead(head: Head, chain: Sequence[_Line], lines: _Lines) -> None:
    """Refuse a journal that goes on for more than the one line that a driver may have died over: a head is missing.

    Raises:
        CorruptStateError: it does.
    """
    last = chain[-1] if chain else None
    after = [line for line in lines.known if line.parent is not None and line.parent.parent is last]
    if after and after[0].depth == head.lines + 2:
        why = f"it goes on after what the newest head (epoch {head.epoch}) names, and no later head is there"
        raise _lost(lines.path.parent / EPOCHS / f"{head.epoch + 1:06d}{HEAD_SUFFIX}", why)


def _read_in_order(content: bytes, path: Path) -> Reading:
    lines = _split(content, path)
    unfinished = not content.endswith(b"\n") and bool(content)
    wrong = sorted(lines.loose + lines.torn[: -1 if unfinished else None])
    out_of_order = [x.number for at, x in enumerate(lines.known, start=1) if x.depth != at]
    first = min([*wrong, *out_of_order], default=None)
    if first is not None:
        raise lines.damaged(
            first, "" if first in wrong else "its seal does not follow: it was moved"
        )
    if not unfinished:
        return _reading(lines.known, content)
    note = f"{path}:{lines.torn[-1]} was cut off while it was written: it does not count"
    return _reading(lines.known, content, [note])


def read_heads(epochs: Path) -> dict[int, Head]:
    """The heads of a run, by epoch.

    Raises:
        CorruptStateError: one was changed, or the newest is gone although its driver has worked.
    """
    try:
        names = os.listdir(epochs)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[int, Head] = {}
    for name in names:
        if re.fullmatch(rf"\d+\{HEAD_SUFFIX}", name):
            head = _read_head(epochs / name)
            found[head.epoch] = head
    worked = [int(n.partition(".")[0]) for n in names if re.fullmatch(rf"\d+\{BEAT_SUFFIX}", n)]
    if worked and max(worked) not in found and max(worked) > max(found, default=0):
        raise _lost(
            epochs / f"{max(worked):06d}{HEAD_SUFFIX}", "it is gone, and its driver has worked"
        )
    return found


def identity_digest(run: Path) -> str:
    """sha256 of the `run.json` in a run folder, byte for byte; empty where there is none."""
    try:
        return hashlib.sha256((run / "run.json").read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _read_head(path: Path) -> Head:
    try:
        head = Head.model_validate(read_sealed(path.read_bytes()))
        if not head.seal or path.name != f"{head.epoch:06d}{HEAD_SUFFIX}":
            raise ValueError("its seal is broken: it changed since it was written")
    except (ValueError, OSError) as error:
        raise_if_disk_failed(error, path)
        raise _lost(path, str(error)) from error
    return head


def _lost(path: Path, why: str) -> CorruptStateError:
    rest = f"{path.parent}/*{HEAD_SUFFIX} {path.parent}/*{BEAT_SUFFIX}"
    return CorruptStateError(
        f"{path} cannot be read: {why}. Fix: restore it from a copy; or remove all of them (`rm {rest}`), and the "
        "journal is read by its own seals alone"
    )
