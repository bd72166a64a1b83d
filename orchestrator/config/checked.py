"""Checks a tree of plain values: it becomes a `RunConfig`, or all that is wrong with it.

Imports the plug-ins that the tree names, so a driver lets another process do this
(`orchestrator/config/plug_ins/configs.py`).
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from orchestrator.config.errors import Problem, problems_of
from orchestrator.config.run_config import RunConfig
from orchestrator.config.tracking_uri import check_uri
from orchestrator.config.values import unusable_numbers
from policies.base.errors import ConfigurationError

_PASSWORD_IN_URI = re.compile(r"://[^/@\s]*:[^/@\s]*@")


def checked(tree: dict[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    """The config that `tree` is, with variables filled in, and its problems; None when it cannot be read as one."""
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        return None, problems_of(error, RunConfig, tree)
    found = problems_of(None, RunConfig, tree) + list(unusable_numbers(tree))
    return config, found + _tracking_problems(config.tracking.uri)


def _tracking_problems(uri: str) -> list[Problem]:
    path = ("tracking", "uri")
    try:
        check_uri(uri)
    except ConfigurationError as error:
        what, _, fix = str(error).partition(" Set by: tracking.uri. Fix: ")
        return [Problem(path, what, fix=fix)]
    if _PASSWORD_IN_URI.search(uri):
        fix = (
            "put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment "
            "(a database: its own password file)"
        )
        return [
            Problem(path, "holds a password, which would be written into the run folder", fix=fix)
        ]
    return []
