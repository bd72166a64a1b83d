"""The files that an update left, recorded when it is committed: new weights with all beside them, step log, optimizer
state.

`rounds/0003/train/files.json` names each with its size and sha256, until the weights become a version, and after that
for the log and the state. So weights that were damaged between training and publishing are made again, not published.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.runs.folder import RoundFolder
from policies.base.errors import CorruptStateError, explain
from policies.base.records import Record, VersionFile
from policies.storage import files
from policies.storage.checksums import read_sealed, with_seal
from policies.storage.version_files import fact_of


class UpdateFiles(Record):
    """The record. Example: `UpdateFiles(files=(VersionFile(name="steps.jsonl", ...),))`."""

    files: tuple[VersionFile, ...]
    """Relative to the round's `train` folder; the new weights are under `candidate/`."""
    seal: str = ""
    """sha256 of the rest of the record."""


def record_update(folder: RoundFolder) -> None:
    """Write down what lies in the `train` folder; what is there was just written and made durable."""
    names = [
        path.relative_to(folder.train).as_posix()
        for top in (folder.train_log, folder.optimizer_state, folder.candidate)
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        if path.is_file()
    ]
    record = UpdateFiles(files=tuple(fact_of(folder.train, name) for name in names))
    tree = with_seal(record.model_dump(mode="json", exclude={"seal"}))
    files.write_json(folder.update_files, tree)


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


def damage_of_candidate(folder: RoundFolder, candidate: Path) -> str | None:
    """Return what is not as the update left it among the weights that are to be published; None when all is well."""
    try:
        record = read_update_files(folder)
    except CorruptStateError as error:
        return str(error)
    if record is None:
        return None
    known = {f.name.removeprefix("candidate/"): f for f in record.files if "/" in f.name}
    there = {p.relative_to(candidate).as_posix() for p in candidate.rglob("*") if p.is_file()}
    for name in sorted(known.keys() | there):
        if name not in there:
            return f"{name} is missing"
        if name in known and fact_of(candidate, name) != known[name].model_copy(
            update={"name": name}
        ):
            return f"{name} changed since the update wrote it"
    return None
