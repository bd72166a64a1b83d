"""Values that a row may hold: text and JSON that can be written to a file and shown to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from policies.base.records import Json

MAX_JSON_DEPTH = 64


class Row(NamedTuple):
    """A row and where it stands, e.g. `train.jsonl:17`."""

    where: str
    values: Mapping[str, Any]
    is_padded: bool = False
    """Structs have all keys of their column, null where the row had none: a null may stand for an absent key."""


class RowError(Exception):
    """One row cannot be used; collected into an InputError."""


def as_text(value: Any, what: str, *, empty: bool = False) -> str:
    """The value if it is text that can be shown.

    Raises:
        RowError: it is something else, blank (unless `empty`), or cannot be written as UTF-8.
    """
    if not isinstance(value, str):
        raise RowError(f"{what!r} must be text, got {shown(value)}")
    if not value.strip() and not empty:
        raise RowError(f"{what!r} is empty")
    if "\x00" in value:
        raise RowError(f"{what!r} holds a NUL character")
    check_unicode(value, what)
    return value


def as_json(value: Any, what: str) -> Json:
    """The value as plain JSON; numbers keep their types.

    Raises:
        RowError: it is no JSON, too deep, or cannot be written as UTF-8.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{what!r} must be JSON, got {shown(value)}: {error}") from error
    check_unicode(text, what)
    if depth(value) > MAX_JSON_DEPTH:
        raise RowError(f"{what!r} is nested deeper than {MAX_JSON_DEPTH} levels")
    plain: Json = json.loads(text)
    return plain


def parsed(value: Any, what: str) -> Any:
    """JSON that stands in a column as text, read; anything else as it is.

    Raises:
        RowError: it is text and no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what!r} must be JSON, got {shown(value)}: {error}") from error


def without_nulls(value: Any) -> Any:
    """The value without keys that are null, at every depth."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value


def depth(value: Any) -> int:
    """Levels of nesting; 1 for a value that holds nothing."""
    level, found = [value], 0
    while level:
        found += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list, tuple))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return found


def check_unicode(text: str, what: str) -> None:
    """Refuse text that cannot be written as UTF-8.

    Raises:
        RowError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"{what!r} holds half of a surrogate pair at character {error.start}"
        ) from error


def listed(values: Mapping[str, Any]) -> str:
    """The names in a row, for messages."""
    return ", ".join(map(str, values)) or "none"


def shown(value: Any) -> str:
    """Type and value, shortened, for messages."""
    return f"{type(value).__name__} {value!r}"[:80]
