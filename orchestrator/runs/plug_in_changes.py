"""Records what a run's plug-ins were made of, and from which round on they are something else.

`run.json` has what the run began with. A change is refused until `pawl resume --accept-changes` writes
`<run>/accepted/0001.json`, which names the round and the phase from which it holds. Each such file is sealed and names
the state that it changes, so that an edited, lost or foreign one is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import Field, ValidationError

from orchestrator.config.run_config import RunConfig
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import read_identity
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase
from policies.base.errors import CorruptStateError, PlugInChangedError
from policies.base.records import Record
from policies.plug_ins.plugin_code import PlugInCode, changes, codes_of, now
from policies.storage import files
from policies.storage.checksums import read_sealed, with_seal
from policies.storage.folder_names import numbered
from workers.cluster.pinned import refusal

Codes = Mapping[str, PlugInCode]


@dataclass(frozen=True)
class PlugIns:
    """The plug-ins of a run that is driven now."""

    codes: Codes = field(default_factory=dict)
    """What each is made of, by what the config calls it; empty in a run that an older Pawl began."""
    changed_in: int | None = None
    """The round of the last change that was accepted."""

    def digests(self, settings: object) -> dict[str, str]:
        """Digests of those that are named somewhere in plain settings, by name."""
        names = set(_texts(settings))
        return {name: code.digest for name, code in self.codes.items() if name in names}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


class AcceptedChange(Record):
    """A change of plug-ins that a user took.

    Example: `AcceptedChange(number=1, round=3, after_phase="collect", at="2026-..", changes=("rules.py was edited",),
    before="9f..", plug_ins={...})`.
    """

    number: int
    round: int
    """The first round with them."""
    after_phase: str
    """The last phase of that round that finished without them; empty when none had."""
    at: str
    changes: tuple[str, ...]
    before: str
    """Digest of all plug-ins until then."""
    plug_ins: dict[str, PlugInCode] = Field(default_factory=dict)
    seal: str = ""
    """sha256 of all the rest."""

    def sentence(self) -> str:
        """The change for people."""
        since = f" (after its phase {self.after_phase})" if self.after_phase else ""
        return f"from round {self.round}{since} on: {'; '.join(self.changes)}"


def plug_ins_of(config: RunConfig) -> dict[str, PlugInCode]:
    """Return what the plug-ins of a config are made of: as their process told, else by a walk through their sources."""
    if config.plug_ins is not None:
        return dict(config.plug_ins.code)
    return codes_of(config.model_dump(mode="json"), required=config.required_code)


def began_with(folder: RunFolder) -> dict[str, PlugInCode]:
    """The plug-ins that `run.json` records; none in a run that an older Pawl began.

    Raises:
        ResumeError: it was written by a newer Pawl.
        CorruptStateError: it cannot be read, or changed since it was written.
    """
    return read_identity(folder).plug_ins


def state_digest(codes: Codes) -> str:
    """One sha256 of all plug-ins."""
    text = json.dumps({name: code.digest for name, code in codes.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def accepted_changes(folder: RunFolder, began_with: Codes) -> list[AcceptedChange]:
    """The changes that were accepted, oldest first.

    Raises:
        CorruptStateError: one is damaged, missing, or does not follow on the one before.
    """
    found: list[AcceptedChange] = []
    state = state_digest(began_with)
    there = [path for _, path in numbered(folder.accepted, suffix=".json")]
    for number, path in enumerate(there, start=1):
        try:
            change = AcceptedChange.model_validate(read_sealed(path.read_bytes()))
            if not change.seal:
                raise ValueError("it has no seal: it was edited")
            if change.number != number or change.before != state:
                raise ValueError("it does not follow on the change before it")
        except (OSError, ValueError, ValidationError) as error:
            files.raise_if_disk_failed(error, path)
            raise CorruptStateError(
                f"{path} is not whole: {str(error)[:300]}. Fix: restore it from a copy of the run"
            ) from error
        found.append(change)
        state = state_digest(change.plug_ins)
    return found


def check_plug_ins(
    folder: RunFolder,
    config: RunConfig,
    began_with: Codes,
    *,
    accept: bool,
    warn: Callable[[str], None],
) -> PlugIns:
    """The plug-ins that hold from here on.

    Raises:
        PlugInChangedError: one is not what it was, and `accept` is not given.
    """
    past = accepted_changes(folder, began_with)
    held = dict(past[-1].plug_ins if past else began_with)
    found = differences(held)
    if not found:
        return PlugIns(held, past[-1].round if past else None)
    if not accept:
        raise PlugInChangedError(refusal(found, str(folder.path)))
    journal = Journal(folder.journal)
    index = journal.next_round()
    done = [entry.phase for entry in journal.entries if entry.round == index]
    change = AcceptedChange(
        number=len(past) + 1,
        round=index,
        after_phase=done[-1].value if done else "",
        at=datetime.now(UTC).isoformat(),
        changes=tuple(found),
        before=state_digest(held),
        plug_ins=plug_ins_of(config),
    )
    if Phase.TRAIN not in done:  # an update that the old code began is not gone on with
        files.remove_tree(folder.round(index).train)
    files.make_directory(folder.accepted)
    tree = with_seal(change.model_dump(mode="json", exclude={"seal"}))
    files.write_json(folder.accepted / f"{change.number:04d}.json", tree)
    warn(f"changed plug-ins were accepted {change.sentence()}")
    return PlugIns(change.plug_ins, index)


def differences(held: Codes) -> list[str]:
    """Return what of the plug-ins is otherwise on disk now. Example: `['./mine.py:score: rules.py was edited']`."""
    return [
        f"{name}: {what}" for name, code in held.items() for what in changes(code, now(name, code))
    ]
