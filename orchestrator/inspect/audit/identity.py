"""Audits what a run says that it is: `run.json` and the two configs beside it."""

from __future__ import annotations

import hashlib

from orchestrator.config.run_config import RunConfig
from orchestrator.inspect.audit.check import Check
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import RunIdentity, read_identity
from orchestrator.runs.reader import tree_digest
from orchestrator.runs.stored_config import read_config, read_object
from policies.base.errors import PawlError, ResumeError


def check_identity(folder: RunFolder, check: Check) -> RunConfig | None:
    """The run's config, when it can still be loaded (a plug-in of it may be gone by now)."""
    try:
        identity = read_identity(folder)
        check.expect(True, "")
        tree = read_object(folder.config)
    except ResumeError as error:
        check.expect(False, str(error))
        return None
    whole = check.expect(
        tree_digest(tree) == identity.config_digest,
        f"{folder.config} was edited since the run began: its digest is not that of run.json",
    )
    _check_bytes(folder, identity, check)
    if not whole:
        return None
    try:
        return read_config(folder)
    except PawlError as error:
        check.notes.append(f"not compared with what the config asks for: {error}")
        return None


def _check_bytes(folder: RunFolder, identity: RunIdentity, check: Check) -> None:
    """The configs as they were written, byte by byte: also the one that only people read."""
    if not identity.seal:
        check.notes.append(
            f"{folder.identity} is of an older Pawl, which wrote no seals: an edit of it cannot be told"
        )
    for path in (folder.config, folder.config_source):
        known = identity.config_files.get(path.name)
        if known is None:
            continue
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            found = str(error)
        check.expect(found == known, f"{path} is not as the run wrote it: {found[:100]}")
