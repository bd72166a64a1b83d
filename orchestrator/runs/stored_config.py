"""The resolved config of a run as it lies in the run folder: without secrets, read back with them.

A value that came from a secret by `${NAME}` is written as `${NAME}` and filled in from the environment again, so a
run folder can be copied and shown. The digest is over what is written: another key, the same run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator.config.errors import Problem, configuration_error
from orchestrator.config.files import expand_variables
from orchestrator.config.plug_ins.configs import checked_outside, names_code
from orchestrator.config.run_config import RunConfig
from orchestrator.runs.folder import RunFolder
from policies.base.errors import CorruptStateError, ResumeError, explain
from policies.base.redaction import redact
from policies.storage.checksums import read_sealed
from policies.storage.files import raise_if_disk_failed


def sealed(config: RunConfig) -> dict[str, Any]:
    """The config as plain values that may be written."""
    tree: dict[str, Any] = redact(config.model_dump(mode="json"))
    return tree


def config_digest(config: RunConfig) -> str:
    """sha256 of the resolved config, as it is written."""
    return hashlib.sha256(json.dumps(sealed(config), sort_keys=True).encode()).hexdigest()


def written_digest(folder: RunFolder) -> str:
    """sha256 of the config that lies in the run folder: of its values, whatever settings this version has more.

    Raises:
        CorruptStateError: it is missing or damaged.
    """
    return hashlib.sha256(json.dumps(_written(folder), sort_keys=True).encode()).hexdigest()


def settings_since(folder: RunFolder, config: RunConfig) -> list[str]:
    """Settings that the version that began the run did not have: their defaults hold. Example: `limits.max_deaths`."""
    return _lacking(_written(folder), sealed(config))


def _lacking(written: Any, now: Any, at: str = "") -> list[str]:
    if isinstance(written, list) and isinstance(now, list):
        pairs = zip(written, now, strict=False)
        return [key for i, (a, b) in enumerate(pairs) for key in _lacking(a, b, f"{at}[{i}]")]
    if not isinstance(written, dict) or not isinstance(now, dict):
        return []
    found = []
    for key, value in now.items():
        path = f"{at}.{key}" if at else str(key)
        found += _lacking(written[key], value, path) if key in written else [path]
    return found


def _written(folder: RunFolder) -> dict[str, Any]:
    return read_object(folder.config)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that a run cannot do without, compared with its seal where it has one.

    Raises:
        CorruptStateError: it is missing, cannot be read, holds something else, or changed since it was written.
    """
    try:
        return read_sealed(path.read_bytes())
    except (OSError, ValueError) as error:
        raise_if_disk_failed(error, path)
        raise CorruptStateError(
            explain(
                f"{path.name} cannot be read: {error}",
                value=str(path),
                where="whoever changed the file",
                fix="restore it from a copy of the run",
            )
        ) from error


def _began_with(folder: RunFolder) -> str:
    """The version that began the run, for a message: never a reason to fail."""
    try:
        version = json.loads(folder.identity.read_text(encoding="utf-8"))["versions"]["pawl-lm"]
    except (OSError, ValueError, KeyError, TypeError):  # then run.json has a message of its own
        return "the version that run.json names"
    return f"pawl-lm {version}"


def read_config(folder: RunFolder) -> RunConfig:
    """The resolved config of a run.

    Raises:
        CorruptStateError: it is missing or damaged, or was written by a Pawl with other settings.
        ResumeError: a plug-in that it names cannot be imported any more, or takes other settings.
        ConfigurationError: it needs an environment variable that is not set.
    """
    tree = _written(folder)
    problems: list[Problem] = []
    expanded = expand_variables(tree, problems)
    if problems:
        raise configuration_error(problems, {p.path: f"Set in {folder.config}" for p in problems})
    if names_code(expanded):
        return _with_plug_ins(folder, expanded)
    try:
        return RunConfig.model_validate(expanded)
    except ValueError as error:
        first = str(error).partition("\n")[2].partition("\n  For further")[0] or str(error)
        raise CorruptStateError(
            f"{folder.config} does not fit this version of Pawl: {first.strip()[:300]}. Fix: resume the run with "
            f"the version that began it: {_began_with(folder)}"
        ) from error


def _with_plug_ins(folder: RunFolder, tree: dict[str, Any]) -> RunConfig:
    config, found = checked_outside(tree)
    if config is None:
        text = str(configuration_error(found, {(): f"Set in {folder.config}"}))
        raise ResumeError(
            f"{folder.config} cannot be read with the plug-ins that it names as they are now: {text[:1500]}\n"
            f"Set by: {folder.config}. Fix: restore the plug-ins, or resume the run with the version that began it: "
            f"{_began_with(folder)}"
        )
    return config
