"""The files that an update left, recorded when it is committed: new weights with all beside them, step log, optimizer
state.

`rounds/0003/train/files.json` is the marker of the `train` folder: it names each file with its size and sha256, what
the update was made from, and what came of it. The weights are under `candidate/` until they become a version; those
that were damaged before that are made again, not published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, JsonValue

from orchestrator.flow.task import UNFINISHED, Guard
from orchestrator.runs.folder import RoundFolder
from policies.base.errors import CorruptStateError, explain
from policies.base.records import Record, VersionFile
from policies.storage import files
from policies.storage.checksums import read_sealed, with_seal
from policies.storage.guarding import committing
from policies.storage.policy_store import MANIFEST
from policies.storage.version_files import fact_of

WEIGHTS = "candidate/"
"""Beginning of the names of what becomes a version."""


class UpdateFiles(Record):
    """The record. Example: `UpdateFiles(files=(VersionFile(name="steps.jsonl", ...),), ...)`."""

    files: tuple[VersionFile, ...]
    """Relative to the round's `train` folder."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digest of each thing that the update was made from. Empty: it left no weights, or an older Pawl made it."""
    summary: dict[str, JsonValue] = Field(default_factory=dict)
    """Of its task."""
    seal: str = ""
    """sha256 of the rest of the record."""

    @property
    def content_digest(self) -> str:
        """One digest over names and sha256 of the weights and what lies beside them."""
        lines = [f"{f.name} {f.sha256}" for f in self.files if f.name.startswith(WEIGHTS)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class UpdateFolder:
    """The `train` folder that an update makes; its weights move into `version` when they are published."""

    folder: RoundFolder
    version: Path
    name: str = "update"

    @property
    def path(self) -> Path:
        return self.folder.train

    @property
    def body(self) -> Path:
        """The new weights: checkpoints beside them stay, and the update goes on from there."""
        is_moved = self.version.exists() and not self.folder.candidate.exists()
        return self.version if is_moved else self.folder.candidate

    def finished(self) -> UpdateFiles | None:
        return read_update_files(self.folder) if self.body.exists() else None

    def damage(self) -> str | None:
        """A published version is checked as that, and not here."""
        try:
            record = self.finished()
        except CorruptStateError as error:
            return str(error)
        if record is None:
            return UNFINISHED
        return None if (self.version / MANIFEST).exists() else self._difference(record)

    def _difference(self, record: UpdateFiles) -> str | None:
        body = self.body
        known = {
            f.name.removeprefix(WEIGHTS): f for f in record.files if f.name.startswith(WEIGHTS)
        }
        there = {p.relative_to(body).as_posix() for p in body.rglob("*") if p.is_file()}
        for name in sorted(known.keys() | there):
            if name not in there:
                return f"{name} is missing"
            renamed = {"name": name}
            if name in known and fact_of(body, name) != known[name].model_copy(update=renamed):
                return f"{name} changed since the update wrote it"
        return None

    def discard(self, guard: Guard) -> None:
        with committing(guard):
            files.remove_file(self.folder.update_files)
            files.remove_tree(self.folder.candidate)


def record_update(
    folder: RoundFolder, inputs: Mapping[str, str], summary: Mapping[str, JsonValue]
) -> UpdateFiles:
    """Write down what lies in the `train` folder; what is there was just written and made durable."""
    names = [
        path.relative_to(folder.train).as_posix()
        for top in (folder.train_log, folder.optimizer_state, folder.candidate)
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        if path.is_file()
    ]
    record = UpdateFiles(
        files=tuple(fact_of(folder.train, name) for name in names),
        inputs=dict(inputs),
        summary=dict(summary),
    )
    tree = with_seal(record.model_dump(mode="json", exclude={"seal"}))
    files.write_json(folder.update_files, tree)
    return record


def read_update_files(folder: RoundFolder) -> UpdateFiles | None:
    """The record; None for a round that has made no update yet, or by an older Pawl.

    Raises:
        CorruptStateError: it cannot be read.
    """
    try:
        return UpdateFiles.model_validate(read_sealed(folder.update_files.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptStateError(
            explain(
                f"what an update left cannot be told: {error}",
                value=str(folder.update_files),
                where="whoever changed the file",
                fix="remove it when its round is finished; else restore it from a copy of the run",
            )
        ) from error
