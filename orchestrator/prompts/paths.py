"""Files that a prompt source names; relative paths were resolved against the config file by its loader."""

from __future__ import annotations

import os
from pathlib import Path

from policies.base.errors import InputError, explain

_MAX_SHOWN = 300


def listed(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    """One path or several, as several."""
    return (paths,) if isinstance(paths, str) else paths


def existing_file(name: str) -> Path:
    """The path, if a file is there.

    Raises:
        InputError: there is none, or it is a folder, or it is empty.
    """
    path = Path(name)
    try:
        problem = _problem(path, name)
    except OSError as error:
        problem = f"the prompt file cannot be looked at ({error.strerror})"
    if problem:
        raise InputError(
            explain(
                problem,
                value=name[:_MAX_SHOWN],
                where="prompts.*.path",
                fix="name a file that holds prompts",
            )
        )
    return path


def _problem(path: Path, name: str) -> str:
    problem = ""
    if "\0" in name:
        problem = "the name of the prompt file holds a NUL character"
    elif path.is_dir():
        problem = "the prompt file is a folder"
    elif not path.is_file():
        problem = "there is no such prompt file"
    elif path.stat().st_size == 0:
        problem = "the prompt file is empty"
    elif not os.access(path, os.R_OK):
        problem = "the prompt file may not be read"
    return problem
