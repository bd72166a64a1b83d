"""The drivers of an audited run: their claims, how far each says that the journal goes, and their last heartbeats."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from orchestrator.inspect.audit.check import Check
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import BEAT_SUFFIX, HEAD_SUFFIX, Head, read_heads
from policies.base.errors import CorruptStateError

_CLAIM = re.compile(r"\d{1,18}\.json")


def check_epochs(folder: RunFolder, check: Check) -> None:
    """The claims on the run, and what their drivers left beside them."""
    heads = _heads(folder, check)
    newest = _check_claims(folder, heads, check)
    if newest:
        _check_heartbeat(folder, newest, check)


def _heads(folder: RunFolder, check: Check) -> dict[int, Head]:
    try:
        return read_heads(folder.epochs)
    except CorruptStateError as error:
        check.expect(False, str(error))
        return {}


def _check_claims(folder: RunFolder, heads: dict[int, Head], check: Check) -> int:
    """Epochs one after the other, each claim as its driver made it; returns the newest."""
    names = [p for p in sorted(folder.epochs.glob("[0-9]*.json")) if _CLAIM.fullmatch(p.name)]
    newest = 0
    for path in names:
        epoch = int(path.stem)
        check.expect(epoch == newest + 1, f"{path} comes after epoch {newest}")
        newest = epoch
        claim = read_object_or_none(path)
        head = heads.get(epoch)
        if head is not None and head.claim:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            check.expect(found == head.claim, f"{path} changed since its driver made it")
        elif claim is None:  # its maker died while it wrote: it never drove
            check.notes.append(f"{path} was cut off while it was written")
        elif check.expect(
            claim.get("epoch") == epoch, f"{path} holds epoch {claim.get('epoch')}"
        ) and any(e >= epoch for e in heads):
            check.notes.append(f"{path}: its driver did not come to the journal")
    lost = sorted(set(heads) - {int(path.stem) for path in names})
    check.expect(not lost, f"{folder.epochs}: the claims of epochs {lost} are gone")
    if not names and folder.journal.exists():
        check.notes.append(f"{folder.epochs} holds no claim: an older Pawl made none")
    return newest


def _check_heartbeat(folder: RunFolder, newest: int, check: Check) -> None:
    """The driver's file: what its heartbeat says, or its claim where it never beat. It only tells who lives."""
    claim_path = folder.epochs / f"{newest:06d}.json"
    beat_path, head_path = claim_path.with_suffix(BEAT_SUFFIX), claim_path.with_suffix(HEAD_SUFFIX)
    claim, beat, told = map(read_object_or_none, (claim_path, beat_path, folder.driver))
    check.num_examined += 1
    if told is None:
        check.notes.append(f"{folder.driver} cannot be read")
    elif _epoch(told) > newest:
        check.fail(f"{folder.driver} holds epoch {told.get('epoch')}, which nobody claimed")
    elif not folder.driver.read_bytes().endswith(b"\n"):
        check.notes.append(f"{folder.driver} was cut off at its end")
    elif told not in (claim, beat):
        check.notes.append(f"{folder.driver} is neither its driver's claim nor its heartbeat")
    if beat is None and (beat_path.exists() or (head_path.exists() and told != claim)):
        check.notes.append(f"{beat_path} cannot be read")
    elif beat is not None and not beat_path.read_bytes().endswith(b"\n"):
        check.notes.append(f"{beat_path} was cut off at its end")
    elif beat is not None and _epoch(beat) != newest:
        check.notes.append(f"{beat_path} holds epoch {beat.get('epoch')}")


def _epoch(value: dict[str, Any]) -> int:
    found = value.get("epoch", 0)
    return found if isinstance(found, int) else -1


def read_object_or_none(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is none or it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # the caller says what that means
        return None
    return value if isinstance(value, dict) else None
