"""Proves from the files alone that a run is whole: nothing lost, nothing double, nothing foreign (`pawl verify`).

It reads shard by shard and only the columns that it needs, so its memory does not grow with the texts of a run, and it
imports neither Ray nor torch. It changes nothing and may look at a run that is going on: only what the journal calls
finished has to be complete.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator.audit.check import Check, Report
from orchestrator.audit.policies import check_lineage, check_references, check_reuse, check_training
from orchestrator.audit.rounds import RoundAudit
from orchestrator.config.resolved import read_config
from orchestrator.config.run_config import RunConfig
from orchestrator.journal import JournalEntry
from orchestrator.launch import SCHEMA_VERSION
from orchestrator.plug_in_changes import accepted_changes, began_with, differences
from orchestrator.removal_notes import left_in_bucket, removed
from orchestrator.rounds.phases import (
    Collected,
    Drawn,
    Evaluated,
    Phase,
    Published,
    Remeasured,
    Synced,
    Trained,
)
from orchestrator.run_folder import RunFolder
from policies.errors import PawlError
from policies.files import TEMPORARY_SUFFIX
from policies.records import Record, RoundResult

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
    config = _check_identity(folder, report["identity"])
    _check_plug_ins(folder, report["plug-ins"])
    entries = _check_journal(folder, report["journal"])
    left = left_in_bucket(folder)
    absent = frozenset(left.names if left else ())
    manifests = check_lineage(folder, entries, report, absent)
    check_references(config, entries, report["reference"])
    check_reuse(entries, report["training"])
    results = [RoundResult.model_validate(e.result) for e in entries if e.phase is Phase.ACCEPT]
    served = {result.round: result.after for result in results}
    first = next((e for e in entries if (e.round, e.phase) == (0, Phase.DRAW)), None)
    gone = removed(folder, "round")
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
    _check_epochs(folder, report["epochs"])
    _check_quarantine(folder, report["quarantine"])
    return report


def _check_identity(folder: RunFolder, check: Check) -> RunConfig | None:
    """The run's config, when it can still be loaded (a plug-in of it may be gone by now)."""
    identity = _json(folder.identity, check)
    tree = _json(folder.config, check)
    if identity is None or tree is None:
        return None
    check.expect(
        identity.get("schema_version") == SCHEMA_VERSION,
        f"{folder.identity}: schema {identity.get('schema_version')}, this Pawl reads {SCHEMA_VERSION}",
    )
    text = json.dumps(tree, sort_keys=True)
    check.expect(
        hashlib.sha256(text.encode()).hexdigest() == identity.get("config_digest"),
        f"{folder.config} was edited since the run began: its digest is not that of run.json",
    )
    try:
        return read_config(folder)
    except PawlError as error:
        check.notes.append(f"not compared with what the config asks for: {error}")
        return None


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


def _json(path: Path, check: Check) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        check.expect(False, f"{path} cannot be read: {error}")
        return None
    check.expect(isinstance(value, dict), f"{path} is no JSON object")
    return value if isinstance(value, dict) else None


def _check_journal(folder: RunFolder, check: Check) -> list[JournalEntry]:
    """The entries that can be read, after checking their order."""
    try:
        content = folder.journal.read_bytes()
    except FileNotFoundError:
        check.notes.append("there is no journal: no phase has finished")
        return []
    whole, _, rest = content.rpartition(b"\n")
    if rest:
        check.notes.append("the last line was cut off while it was written; a resume drops it")
    entries: list[JournalEntry] = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            entry = JournalEntry.model_validate(json.loads(line))
            _RESULTS[entry.phase].model_validate(entry.result)
        except ValueError as error:
            check.expect(False, f"{folder.journal}:{number} cannot be read: {error}")
        else:
            entries.append(entry)
    _check_order(folder, entries, check)
    return entries


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


def _check_epochs(folder: RunFolder, check: Check) -> None:
    """The claims on the run, and that the driver's file repeats the newest."""
    claims = sorted(folder.epochs.glob("[0-9]*.json"))
    newest = 0
    for path in claims:
        check.expect(int(path.stem) == newest + 1, f"{path} comes after epoch {newest}")
        newest = int(path.stem)
        claim = _read_object(path)
        if claim is None:  # its maker died while it wrote: it never drove
            check.notes.append(f"{path} was cut off while it was written")
        else:
            check.expect(claim.get("epoch") == newest, f"{path} holds epoch {claim.get('epoch')}")
    held = _read_object(folder.driver)
    if held is not None and claims:
        check.expect(
            held.get("epoch", 0) <= newest,
            f"{folder.driver} holds epoch {held.get('epoch')}, which nobody claimed",
        )


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the caller says what that means
        return None
    return value if isinstance(value, dict) else None


def _check_quarantine(folder: RunFolder, check: Check) -> None:
    root = folder.quarantine
    found = [p for p in sorted(root.rglob("*")) if p.is_file()] if root.is_dir() else []
    files = [p for p in found if not p.name.endswith(TEMPORARY_SUFFIX)]
    for path in sorted(set(found) - set(files)):
        check.notes.append(f"{path} was left behind; a resume removes it")
    reasons = {p for p in files if p.name.endswith(REASON)}
    for path in reasons:
        check.expect(_read_object(path) is not None, f"{path} cannot be read")
    for path in sorted(set(files) - reasons):
        inside = [p for p in path.parents if root in p.parents]
        owners = [path, Path(str(path).removesuffix(".json")), *inside]
        has_reason = any(owner.with_name(owner.name + REASON) in reasons for owner in owners)
        check.expect(has_reason, f"{path} has no reason beside it")
    if reasons:
        check.notes.append(f"{len(reasons)} items are in {root}")
