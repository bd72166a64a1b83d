"""The identity of a run: `run.json`, written once under a seal, and what it says of the config beside it."""

from __future__ import annotations

import hashlib

from pydantic import Field

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import identity_digest, read_heads
from orchestrator.runs.stored_config import read_object
from policies.base.errors import CorruptStateError, ResumeError, explain
from policies.base.records import Record
from policies.plug_ins.plugin_code import PlugInCode
from policies.storage import files
from policies.storage.checksums import with_seal

SCHEMA_VERSION = 1


class RunIdentity(Record):
    """The identity of a run; written once. Example: `RunIdentity(name="quickstart-1", config_digest="9f..", ...)`."""

    schema_version: int
    run_id: str
    """Random and unique; stays the same over resumes."""
    name: str
    experiment: str
    created_at: str
    config_digest: str
    versions: dict[str, str]
    remote_code: dict[str, str] = Field(default_factory=dict)
    """Python files of the model that `trust_remote_code` lets run, with their sha256."""
    plug_ins: dict[str, PlugInCode] = Field(default_factory=dict)
    """What each component and function of the user's own is made of, by what the config calls it."""
    template_date: str = ""
    """The day that the run's chat templates are told (`rollout.template_date`, else the day of `created_at`)."""
    config_files: dict[str, str] = Field(default_factory=dict)
    """sha256 of `config.json` and `config.source.yaml`, byte for byte. Empty by an older Pawl."""
    seal: str = ""
    """sha256 of the rest of the file. Empty: by an older Pawl."""


def write_identity(folder: RunFolder, identity: RunIdentity) -> None:
    """Write `run.json` under its seal, with the sha256 of the configs that lie beside it already."""
    configs = [p for p in (folder.config, folder.config_source) if p.is_file()]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in configs}
    tree = identity.model_dump(mode="json", exclude={"seal"}) | {"config_files": found}
    files.write_json(folder.identity, with_seal(tree))


def check_witness(folder: RunFolder) -> None:
    """Hold `run.json` to what the last driver saw of it, whatever seal it has now.

    Raises:
        CorruptStateError: it is another file.
    """
    heads = read_heads(folder.epochs)
    seen = heads[max(heads)].identity if heads else ""
    if seen and seen != identity_digest(folder.path):
        raise CorruptStateError(
            explain(
                "run.json is not the file that the last driver of the run worked with",
                value=str(folder.identity),
                where="whoever changed the file",
                fix="restore it from a copy of the run",
            )
        )


def read_identity(folder: RunFolder) -> RunIdentity:
    """`run.json` of a run.

    Raises:
        ResumeError: it was written by a newer Pawl.
        CorruptStateError: it cannot be read, or changed since it was written.
    """
    found = read_object(folder.identity)
    if found.get("schema_version") != SCHEMA_VERSION:
        raise ResumeError(
            f"{folder.path} was written by another version of Pawl (schema {found.get('schema_version')}, "
            f"this one reads {SCHEMA_VERSION}). Fix: resume it with that version"
        )
    check_witness(folder)
    try:
        return RunIdentity.model_validate(found)
    except ValueError as error:
        raise CorruptStateError(
            explain(
                f"run.json is not whole: {error}",
                value=str(folder.identity),
                where="whoever changed the file",
                fix="restore it from a copy of the run",
            )
        ) from error
