"""Python code that comes with a model: refused by default; where it is allowed, it is pinned and named.

`trust_remote_code` stands at an engine. It runs that code with all rights of the worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.requirements import POLICY
from policies.storage.artifacts import file_sha256

if TYPE_CHECKING:
    from orchestrator.config.run_sections import RunSections

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HANDED_THE_POLICY = (("rollout", "engine"), ("training", "engine"))
"""Places of engines, also in a stage; any other is handed its model by the component that has it, which says so."""


def trusted_by(config: RunSections) -> dict[str, str]:
    """Tell which setting lets code run that comes with a model, and with which model.

    Example: `{"rollout.engine.trust_remote_code": "org/model"}`.
    """
    found: dict[str, str] = {}
    for each in config.components:
        hosting = each.needs.hosting
        if hosting is not None and hosting.trusts_code and each.place[-2:] in _HANDED_THE_POLICY:
            found[f"{each.path}.trust_remote_code"] = config.policy.model
        for model in each.needs.models:
            if model.trusts_code:
                name = config.policy.model if model.name == POLICY else model.name
                found[f"{each.path}.{model.trusted_by}"] = name
    return found


def problems(config: RunSections) -> Iterator[str]:
    """Code of a hub model that is not pinned to a commit: tomorrow it may be other code."""
    for path, model in trusted_by(config).items():
        if Path(model).expanduser().is_dir() or model.count("/") != 1:
            continue
        if model != config.policy.model:
            yield (
                f"{path} is on for {model!r}, whose code cannot be pinned there. Fix: download the model, "
                "read its code, and give its folder"
            )
        elif not _COMMIT.fullmatch(config.policy.revision or ""):
            yield (
                f"{path} is on and policy.revision is {config.policy.revision!r}: the code of {model!r} "
                "could change. Fix: read the code of one commit, and set policy.revision to its 40 hex digits"
            )


def code_files(path: Path) -> dict[str, str]:
    """The Python files of a model directory with their sha256."""
    files = [p for p in sorted(path.rglob("*.py")) if p.is_file()]  # a pipe would be waited for
    return {str(p.relative_to(path)): file_sha256(p) for p in files}


def trusted_code(config: RunSections) -> dict[str, str]:
    """Return what of the policy's own code may run: nothing unless `trust_remote_code` is on."""
    from orchestrator.config.model_files import resolve_model

    if not trusted_by(config):
        return {}
    return code_files(resolve_model(config.policy, with_code=True))


def foreign_code(model_config: dict[str, Any]) -> list[str]:
    """Entries of `auto_map` that name code of another repository, which no revision of ours pins."""
    mapped = model_config.get("auto_map")
    found: list[str] = []
    for value in mapped.values() if isinstance(mapped, dict) else []:
        entries = value if isinstance(value, list) else [value]
        found += [e for e in entries if isinstance(e, str) and "--" in e]
    return found
