"""Ways into a row: `answer`, `reward_model.ground_truth`, `choices[0].text`, `prompt[-1].content`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.prompts.row_values import RowError, listed, shown

_NAME = r"[^\W\d][\w -]*"
_REST = r"(?:\.[\w -]+|\[-?\d+\])*"
PATH = re.compile(_NAME + _REST)
"""What a path looks like in a template: a column, then keys behind dots and positions in brackets."""
_PART = re.compile(r"\.?(?P<key>[^.\[\]]+)|\[(?P<position>-?\d+)\]|(?P<other>.)")


def root_of(path: str, values: Mapping[str, Any]) -> str:
    """The column that a path begins with; a column may be called `a.b` itself."""
    return path if path in values else re.split(r"[.\[]", path, maxsplit=1)[0]


def has(values: Mapping[str, Any], path: str) -> bool:
    """Tell whether the path leads to something, be it null."""
    try:
        look_up(values, path)
    except RowError:
        return False
    return True


def look_up(values: Mapping[str, Any], path: str) -> Any:
    """Return what the path leads to.

    Example:
        >>> look_up({"choices": [{"text": "a"}, {"text": "b"}]}, "choices[1].text")
        'b'

    Raises:
        RowError: it leads nowhere; the message says how far it came and what there is.
    """
    if path in values:
        return values[path]
    found: Any = values
    done = ""
    parts = list(_PART.finditer(path))
    if not parts or any(part["other"] for part in parts):
        raise RowError(
            f"{path!r} is no way into a row; write e.g. column, column.key or column[0].key"
        )
    for part in parts:
        key: str | int = part["key"] if part["key"] is not None else int(part["position"])
        if isinstance(found, list) and isinstance(key, str) and key.isdigit():
            key = int(key)
        found = _step(found, key, path, done)
        done += part[0]
    return found


def _step(found: Any, key: str | int, path: str, done: str) -> Any:
    if isinstance(found, Mapping) and key in found:
        return found[key]
    if isinstance(found, list) and isinstance(key, int) and -len(found) <= key < len(found):
        return found[key]
    if not done:
        assert isinstance(found, Mapping)
        close = difflib.get_close_matches(str(key), map(str, found), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise RowError(f"no {path!r}; columns here: {listed(found)}{hint}")
    if isinstance(found, Mapping):
        raise RowError(f"no {path!r}: {done!r} holds {listed(found)}")
    if isinstance(found, list):
        raise RowError(f"no {path!r}: {done!r} is a list of {len(found)}")
    raise RowError(f"no {path!r}: {done!r} is {shown(found)}, which holds no keys")
