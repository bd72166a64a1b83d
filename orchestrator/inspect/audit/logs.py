"""Files of an audited run that decide nothing: event log, judges' replies, tracking, reports. Damage there is a note.

A damaged event is not shown, a damaged reply is asked for again, a damaged tracking line is not sent, and a report is
written anew after the next round. So the run is whole without them, and whoever cares is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.inspect.audit.check import Check
from orchestrator.runs.events import EventKind, parse_event
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import JournalEntry
from orchestrator.runs.phases import Phase
from orchestrator.runs.stored_config import read_object
from orchestrator.tracking.spool import Spool, is_line
from policies.base.errors import CorruptStateError
from policies.storage.checksums import SEAL, is_text_whole, read_sealed
from workers.judge.reply_cache import is_reply
from workers.training.checkpoints.store import damage_of

ENDINGS = (EventKind.RUN_FINISHED, EventKind.RUN_FAILED, EventKind.RUN_INTERRUPTED)


def check_logs(folder: RunFolder, entries: Sequence[JournalEntry], check: Check) -> None:
    """Count what reads back, and note what does not."""
    _check_events(folder, entries, check)
    _check_replies(folder, entries, check)
    _check_tracking(folder, check)
    for path in sorted(folder.path.glob("rounds/*/train/checkpoints/*")):
        if path.name.isdecimal() and path.is_dir():
            check.num_examined += 1
            if why := damage_of(path):
                check.notes.append(f"{path} is not gone on from: {why}")
    has_results = any(entry.phase is Phase.ACCEPT for entry in entries)
    for path in (folder.path / "report.html", folder.path / "report.md"):
        if has_results and _identity(folder).get(SEAL):  # an older Pawl put no sum into them
            check.num_examined += 1
            if not path.is_file():
                check.notes.append(f"{path} is missing; the next round writes it")
            elif not is_text_whole(path.read_bytes(), str(_identity(folder).get("run_id"))):
                check.notes.append(f"{path} is not as it was written")


def _check_replies(folder: RunFolder, entries: Sequence[JournalEntry], check: Check) -> None:
    files = sorted(folder.judge_cache.glob("worker-*.jsonl"))
    num_replies = 0
    for path in files:
        for number, line in _lines(path, check):
            num_replies += 1
            if not is_reply(line):
                check.notes.append(f"{path}:{number} cannot be read; it is asked for again")
        if path.stat().st_size == 0:  # a worker makes its file with the first reply
            check.notes.append(f"{path} is empty: its replies are asked for again")
    judged = any(e.round and e.phase is Phase.COLLECT for e in entries) and _has_judges(folder)
    if judged and not num_replies:
        check.notes.append(
            f"{folder.judge_cache} holds no reply: they were lost, or no judge ever gave one"
        )


def _has_judges(folder: RunFolder) -> bool:
    try:
        return bool(read_object(folder.config).get("judges"))
    except CorruptStateError:  # told elsewhere
        return False


def _identity(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_object(folder.identity)
    except CorruptStateError:  # told elsewhere
        return {}


def _check_events(folder: RunFolder, entries: Sequence[JournalEntry], check: Check) -> None:
    own, last = _identity(folder).get("run_id"), None
    told: set[tuple[int | None, str | None]] = set()
    for number, line in _lines(folder.events, check):
        event = parse_event(line.decode(errors="replace"))
        if event is None:
            check.notes.append(f"{folder.events}:{number} cannot be read; it is not shown")
        elif event.kind is EventKind.PHASE_FINISHED:
            told.add((event.round, event.phase))
        elif event.kind is EventKind.RUN_STARTED and event.detail.get("run", own) != own:
            check.notes.append(f"{folder.events}:{number} is of another run")
        last = event
    if last is not None and last.kind not in ENDINGS and _has_ended(folder):
        check.notes.append(f"{folder.events} lacks its end: the driver had told how it ended")
    untold = [e for e in entries if (e.round, e.phase.value) not in told]
    # The driver may have died between the journal and the event: one phase for each start is no news.
    for entry in untold:
        check.notes.append(
            f"{folder.events} does not tell of round {entry.round}, {entry.phase.value}: the driver died before, or "
            "it was lost"
        )


def _has_ended(folder: RunFolder) -> bool:
    """Tell whether the last driver gave the run back, which it does after its last event."""
    try:
        return json.loads(folder.driver.read_bytes()).get("released") is True
    except (OSError, ValueError, AttributeError, RecursionError):  # told elsewhere
        return False


def _check_tracking(folder: RunFolder, check: Check) -> None:
    if not folder.tracking.is_dir():
        return
    spool = Spool(folder.tracking).path
    if not spool.is_file():
        check.notes.append(f"{spool} is missing: what was not sent is lost")
    elif spool.stat().st_size < _sent(folder.tracking / "offset.json"):
        check.notes.append(f"{spool} is shorter than what was sent of it: lines are lost")
    for number, line in _lines(spool, check):
        if not is_line(line):
            check.notes.append(f"{spool}:{number} cannot be read; it is not sent")
    for name in ("offset.json", "runs.json"):
        path = folder.tracking / name
        if not path.is_file():
            continue
        check.num_examined += 1
        try:
            read_sealed(path.read_bytes())
        except (OSError, ValueError) as error:
            check.notes.append(f"{path} cannot be read: {error}; lines may be sent twice")


def _sent(path: Path) -> int:
    """Bytes of the spool that were sent, as far as that can be read."""
    try:
        return int(read_sealed(path.read_bytes())["offset"])
    except (OSError, ValueError, KeyError, TypeError):  # told elsewhere
        return 0


def _lines(path: Path, check: Check) -> Iterator[tuple[int, bytes]]:
    """Whole lines with their numbers, counted; one that was cut off is noted."""
    try:
        *whole, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        check.notes.append(f"{path} cannot be read: {error}")
        return
    check.num_examined += len(whole)
    yield from enumerate(whole, start=1)
    if rest:
        check.notes.append(f"{path}: its last line was cut off")
