"""The one checked way in which commands read what a run decided: journal, `run.json` and config. It never writes.

Two ways to ask: `read_entries` and `read_config_tree` refuse what is damaged, for whoever decides on it;
`read_sound` gives what is sound and one sentence for each thing that is not, for whoever shows a run to people.
Other files have a reader each that compares before it returns: shards `policies.storage.artifacts.read_records`,
policies `policies.storage.policy_store.read_manifest`, events `orchestrator.runs.events.read_events`, notes
`orchestrator.runs.removal_notes`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import check_witness
from orchestrator.runs.journal_reading import JournalEntry, read_heads, read_journal
from orchestrator.runs.phases import Phase
from orchestrator.runs.stored_config import read_object
from policies.base.errors import CorruptStateError, ResumeError, explain
from policies.base.records import RoundResult


@dataclass(frozen=True)
class Sound:
    """The part of a run that can be trusted. Example: `Sound(entries=(...), config={...}, damage=())`."""

    entries: tuple[JournalEntry, ...] = ()
    """Finished phases, up to the first that is damaged."""
    identity: dict[str, Any] = field(default_factory=dict)
    """`run.json`; empty when it is damaged."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config as plain values; empty when it is damaged, or nothing vouches for it."""
    damage: tuple[str, ...] = ()
    """A sentence in four parts for each file that is damaged."""

    def results(self) -> list[RoundResult]:
        """Finished rounds, in order."""
        accepted = [entry for entry in self.entries if entry.phase is Phase.ACCEPT]
        return [RoundResult.model_validate(entry.result) for entry in accepted]


def read_entries(folder: RunFolder) -> list[JournalEntry]:
    """The finished phases of a run, which may be going on.

    Raises:
        CorruptStateError: a line that counts was lost or changed.
    """
    return list(read_journal(folder.journal).entries)


def read_config_tree(folder: RunFolder) -> dict[str, Any]:
    """The resolved config as plain values, held to the digest in `run.json`.

    Raises:
        CorruptStateError: either cannot be read, or they do not belong together.
    """
    check_witness(folder)
    identity, tree = read_object(folder.identity), read_object(folder.config)
    digest = identity.get("config_digest")
    if digest is not None and digest != tree_digest(tree):
        raise CorruptStateError(
            explain(
                "the config of the run was edited since it began: its digest is not that of run.json",
                value=str(folder.config),
                where="whoever changed the file",
                fix="undo the edit, or start a new run",
            )
        )
    return tree


def tree_digest(tree: dict[str, Any]) -> str:
    """sha256 of a resolved config, of its values alone."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def read_sound(folder: RunFolder) -> Sound:
    """Return what of a run can be trusted, and what cannot; raises for nothing that lies in the folder."""
    damage: list[str] = []
    identity: dict[str, Any] = {}
    config: dict[str, Any] = {}
    try:
        identity = read_object(folder.identity)
        config = read_config_tree(folder)
    except ResumeError as error:
        damage.append(str(error))
    entries, broken = _sound_entries(folder)
    return Sound(entries, identity, config, (*damage, *broken))


def _sound_entries(folder: RunFolder) -> tuple[tuple[JournalEntry, ...], list[str]]:
    try:
        reading = read_journal(folder.journal)
        return reading.entries, list(reading.damage)
    except CorruptStateError as error:
        return tuple(_until_damage(folder)), [str(error)]
    except OSError as error:
        return (), [f"{folder.journal} cannot be read: {error}. Fix: restore it from a copy"]


def _until_damage(folder: RunFolder) -> list[JournalEntry]:
    """The lines before the first that does not follow on the one before it.

    None where no driver's head names any line: it may be the journal of another run, and is in itself in order.
    """
    found: list[JournalEntry] = []
    content = folder.journal.read_bytes() if folder.journal.exists() else b""
    if not _is_of_the_run(folder, content):
        return found
    for line in content.split(b"\n")[:-1]:
        try:
            entry = JournalEntry.model_validate(json.loads(line))
        except (ValueError, RecursionError):
            break
        before = found[-1].seal if found else ""
        if (entry.seal or before) and entry != entry.sealed_after(before):
            break
        found.append(entry)
    return found


def _is_of_the_run(folder: RunFolder, content: bytes) -> bool:
    try:
        heads = read_heads(folder.epochs)
    except CorruptStateError:
        return False
    return not heads or any(h.last and h.last.encode() in content for h in heads.values())
