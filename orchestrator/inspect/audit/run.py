"""Proves from the files alone that a run is whole: nothing lost, nothing double, nothing foreign (`pawl verify`).

It reads shard by shard and only the columns that it needs, so its memory does not grow with the texts of a run, and it
imports neither Ray nor torch. It changes nothing and may look at a run that is going on: only what the journal calls
finished has to be complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from orchestrator.inspect.audit.check import Check, Report
from orchestrator.inspect.audit.earlier_examples import check_reuse
from orchestrator.inspect.audit.epochs import check_epochs
from orchestrator.inspect.audit.foreign import name_foreign_files
from orchestrator.inspect.audit.identity import check_identity
from orchestrator.inspect.audit.logs import check_logs
from orchestrator.inspect.audit.policies import (
    check_lineage,
    check_place_of_model,
    check_references,
    check_training,
)
from orchestrator.inspect.audit.rounds import RoundAudit
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import JournalEntry, read_journal
from orchestrator.runs.phases import (
    Collected,
    Drawn,
    Evaluated,
    Phase,
    Published,
    Remeasured,
    Synced,
    Trained,
)
from orchestrator.runs.plug_in_changes import accepted_changes, began_with, differences
from orchestrator.runs.quarantine import MARKER
from orchestrator.runs.removal_notes import Removed, left_in_bucket, removed
from policies.base.errors import CorruptStateError, PawlError
from policies.base.records import Record, RoundResult
from policies.storage.artifacts import file_sha256, marker_path
from policies.storage.checksums import read_sealed
from policies.storage.files import TEMPORARY_SUFFIX
from policies.storage.folder_names import is_leftover_of_others

V = TypeVar("V")

REASON = ".reason.json"
"""Ends the name of the file that says why another one was set aside."""

_ORDER = {phase: place for place, phase in enumerate(Phase)}
_RESULTS: dict[Phase, type[Record]] = {
    Phase.DRAW: Drawn,
    Phase.COLLECT: Collected,
    Phase.TRAIN: Trained,
    Phase.PUBLISH: Published,
    Phase.SYNC: Synced,
    Phase.EVALUATE: Evaluated,
    Phase.COMPARE: Remeasured,
    Phase.FINAL: Remeasured,
    Phase.ACCEPT: RoundResult,
}
"""What each phase leaves in the journal."""
_NEEDS = {
    Phase.COLLECT: Phase.DRAW,
    Phase.TRAIN: Phase.COLLECT,
    Phase.PUBLISH: Phase.TRAIN,
    Phase.SYNC: Phase.PUBLISH,
    Phase.EVALUATE: Phase.DRAW,
    Phase.COMPARE: Phase.EVALUATE,
    Phase.FINAL: Phase.DRAW,
    Phase.ACCEPT: Phase.DRAW,
}
"""Which phase of the same round must have finished before."""


def audit(folder: RunFolder, *, deep: bool = False) -> Report:
    """Look at everything that the run wrote and return every check with its problems.

    Args:
        folder: the run; of any age, finished or not.
        deep: also read every row back and recompute the content digests: reads all columns, takes longer.
    """
    report = Report()
    config = check_identity(folder, report["identity"])
    _check_plug_ins(folder, report["plug-ins"])
    entries = _check_journal(folder, report["journal"])
    left = _noted(lambda: left_in_bucket(folder), None, report["complete"])
    absent = frozenset(left.names if left else ())
    manifests = check_lineage(folder, entries, report, absent)
    check_place_of_model(config, manifests, report["lineage"])
    check_references(config, entries, report["reference"])
    check_reuse(config, entries, report["training"])
    results = [RoundResult.model_validate(e.result) for e in entries if e.phase is Phase.ACCEPT]
    served = {result.round: result.after for result in results}
    first = next((e for e in entries if (e.round, e.phase) == (0, Phase.DRAW)), None)
    nothing: dict[int, Removed] = {}
    gone = _noted(lambda: removed(folder, "round"), nothing, report["complete"])
    sets = [] if first is None else str(first.result["digest"]).split(":")
    measured = dict(zip(("train", "held_out", "test"), sets, strict=False))
    for index in folder.rounds():
        of_round = {e.phase: e for e in entries if e.round == index}
        here = RoundAudit(
            folder.round(index),
            index,
            of_round,
            config,
            manifests,
            report,
            measured=measured,
            was_removed=index in gone,
            absent=absent,
            deep=deep,
        )
        here.run(served)
        check_training(folder, index, of_round, report["training"], absent)
    elsewhere = {int(name.split("/")[1]) for name in absent if name.startswith("rounds/")}
    for index in sorted(served.keys() - set(folder.rounds()) - elsewhere):
        report["complete"].fail(f"round {index} is in the journal, its folder is gone")
    report["complete"].notes += [note.sentence() for note in gone.values()]
    if absent:
        report["complete"].notes.append(
            f"{len(absent)} files were not fetched and are not checked: they are in {left.address if left else ''}"
        )
    check_epochs(folder, report["epochs"])
    check_logs(folder, entries, report["logs"])
    name_foreign_files(folder, report["logs"])
    _check_quarantine(folder, report["quarantine"])
    return report


def _check_plug_ins(folder: RunFolder, check: Check) -> None:
    """The accepted changes follow on what the run began with; each is told, and so is what differs on disk now."""
    try:
        first = began_with(folder)
        changes = accepted_changes(folder, first)
    except PawlError as error:
        check.expect(False, str(error))
        return
    check.expect(True, "")  # the record itself was examined, also when it says that there are none
    if not first:
        return
    held = changes[-1].plug_ins if changes else first
    check.notes += [f"accepted {change.sentence()}" for change in changes]
    check.notes += [f"on disk now, and in no round: {what}" for what in differences(held)[:5]]


def _noted(read: Callable[[], V], otherwise: V, check: Check) -> V:
    """Return what a note on the folder says; a damaged one is a problem, and says nothing."""
    try:
        return read()
    except CorruptStateError as error:
        check.expect(False, str(error))
        return otherwise


def _check_journal(folder: RunFolder, check: Check) -> list[JournalEntry]:
    """The entries that can be read, after checking their seals and their order."""
    if not folder.journal.exists():
        check.notes.append("there is no journal: no phase has finished")
        return []
    try:
        reading = read_journal(folder.journal)
    except CorruptStateError as error:
        check.expect(False, str(error))
        entries = list(_readable(folder))
    else:
        check.notes += reading.notes
        if not (reading.notes or reading.damage) and reading.content != folder.journal.read_bytes():
            check.notes.append(f"{folder.journal} holds empty lines: they do not count")
        for sentence in reading.damage:
            check.expect(False, sentence)
        entries = [e for e in reading.entries if _is_whole(e, folder, check)]
    _check_order(folder, entries, check)
    return entries


def _is_whole(entry: JournalEntry, folder: RunFolder, check: Check) -> bool:
    try:
        _RESULTS[entry.phase].model_validate(entry.result)
    except ValueError as error:
        where = f"round {entry.round}, {entry.phase.value}"
        return check.expect(False, f"{folder.journal}: {where} cannot be read: {error}")
    return True


def _readable(folder: RunFolder) -> Iterator[JournalEntry]:
    """Lines of a damaged journal that can still be read, to name what else is wrong."""
    for line in folder.journal.read_bytes().split(b"\n"):
        with suppress(ValueError, RecursionError):
            entry = JournalEntry.model_validate(json.loads(line))
            _RESULTS[entry.phase].model_validate(entry.result)
            yield entry


def _check_order(folder: RunFolder, entries: list[JournalEntry], check: Check) -> None:
    seen: set[tuple[int, Phase]] = set()
    last = (0, -1)
    for entry in entries:
        where = f"{folder.journal}: round {entry.round}, {entry.phase.value}"
        check.expect((entry.round, entry.phase) not in seen, f"{where} stands there twice")
        place = (entry.round, _ORDER[entry.phase])
        check.expect(place >= last, f"{where} comes after a later phase")
        needed = _NEEDS.get(entry.phase)
        check.expect(
            needed is None or (entry.round, needed) in seen,
            f"{where} finished without {needed.value if needed else ''}",
        )
        if entry.round > 0:
            check.expect(
                (entry.round - 1, Phase.ACCEPT) in seen,
                f"{where} began before round {entry.round - 1} was accepted",
            )
        if entry.phase is Phase.ACCEPT:
            result = RoundResult.model_validate(entry.result)
            check.expect(result.round == entry.round, f"{where} holds round {result.round}")
        seen.add((entry.round, entry.phase))
        last = max(last, place)


def _is_others(path: Path, root: Path) -> bool:
    return any(is_leftover_of_others(name) for name in path.relative_to(root).parts)


def _check_quarantine(folder: RunFolder, check: Check) -> None:
    root = folder.quarantine
    found = [p for p in sorted(root.rglob("*")) if p.is_file()] if root.is_dir() else []
    found = [p for p in found if not _is_others(p, root)]
    files = [p for p in found if not p.name.endswith(TEMPORARY_SUFFIX)]
    for path in sorted(set(found) - set(files)):
        check.notes.append(f"{path} was left behind; a resume removes it")
    reasons = {p for p in files if p.name.endswith(REASON)}
    for path in sorted(reasons):
        _check_reason(path, check)
    for path in sorted(set(files) - reasons):
        inside = [p for p in path.parents if root in p.parents]
        owners = [path, Path(str(path).removesuffix(".json")), *inside]
        has_reason = any(owner.with_name(owner.name + REASON) in reasons for owner in owners)
        check.expect(has_reason, f"{path} has no reason beside it")
    if reasons:
        check.notes.append(f"{len(reasons)} items are in {root}")


def _check_reason(path: Path, check: Check) -> None:
    """A reason, and whether what it is about is still what was set aside; nothing is decided by either."""
    try:
        known = read_sealed(path.read_bytes()).get("sha256")
    except (OSError, ValueError) as error:
        check.expect(False, f"{path} cannot be read: {error}")
        return
    check.expect(True, "")
    item = path.with_name(path.name.removesuffix(REASON))
    for name, digest in known.items() if isinstance(known, dict) else ():
        inside = {".": item, MARKER: marker_path(item)}.get(name, item / name)
        if not inside.is_file() or file_sha256(inside) != digest:
            check.notes.append(f"{inside} is not what was set aside")
