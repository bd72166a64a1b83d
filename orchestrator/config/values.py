"""Values that no setting can work with, whatever its type: refused wherever they stand in a config, plug-ins included.

A number field of ours has bounds of its own (`policies.base.bounds`); what is left to this page are values without a
type (`template_arguments`, arguments of functions, settings of a user's own component) and texts that no file, name or
process can carry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from orchestrator.config.errors import Problem
from orchestrator.config.strict_yaml import KeyPath
from policies.base.bounds import MAX_WHOLE

PATH_KEYS = frozenset({"type", "path", "paths", "function", "prompt_file", "model"})
"""Settings that may name a file."""
_MAX_PATH = 4095
_MAX_NAME = 255


def unusable_texts(value: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Texts, keys included, that cannot be written as UTF-8 or handed to the system, and paths that no disk takes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            problem = _of_text(key)
            if problem is not None:
                yield Problem(path, f"a key in it {problem[0]}", value=key, fix=problem[1])
            else:
                yield from unusable_texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from unusable_texts(inner, (*path, index))
    elif isinstance(value, str):
        problem = _of_text(value) or _of_path(value, path)
        if problem is not None:
            yield Problem(path, problem[0], value=value, fix=problem[1])


def _of_text(text: str) -> tuple[str, str] | None:
    if "\0" in text:
        return "holds a NUL character", "remove it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"holds half of a surrogate pair at character {error.start}"
        return where, "write the character itself, in UTF-8"
    return None


def _of_path(text: str, path: KeyPath) -> tuple[str, str] | None:
    names = [key for key in path if isinstance(key, str)]
    if not names or names[-1] not in {*PATH_KEYS, "uri"}:
        return None
    text = text.partition(":///")[2] if names[-1] == "uri" else text
    file = text.rpartition(":")[0] if text.rpartition(":")[0].endswith(".py") else text
    if len(file.encode()) > _MAX_PATH:
        return f"is longer than a path may be ({_MAX_PATH} bytes)", "give a shorter path"
    if any(len(part.encode()) > _MAX_NAME for part in file.split("/")):
        return (
            f"holds a name longer than a file's may be ({_MAX_NAME} bytes)",
            "give a shorter name",
        )
    return None


def unusable_numbers(value: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Numbers that JSON or a 64-bit column cannot hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from unusable_numbers(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from unusable_numbers(inner, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, "must be a finite number", value=value, fix="write a finite number")
    elif isinstance(value, int) and not -MAX_WHOLE <= value <= MAX_WHOLE:
        what = "must be a whole number of 64 bits"
        yield Problem(path, what, value=value, fix=f"write one from -{MAX_WHOLE} to {MAX_WHOLE}")
