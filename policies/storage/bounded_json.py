"""JSON of unknown origin: its size, its number of values and its numbers are looked at before it becomes objects.

A value of JSON takes up to a hundred bytes as a Python object: two megabytes of `[[],[],...` become two hundred. The
values are counted in the bytes, which is quick and errs on the safe side (commas inside texts count too).
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_VALUES = 2_500_000
"""Values of one text; the largest tokenizer in use (262,000 tokens) has 1.9 million."""
MAX_DIGITS = 400
"""Of one whole number: more than any double has."""
_BETWEEN = (b",", b"[", b"{")


class BoundsError(ValueError):
    """The text is larger, or holds more, than may be read."""


def parse_json(
    content: bytes,
    *,
    max_values: int = MAX_VALUES,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON text. Numbers are finite and of at most `MAX_DIGITS` digits.

    Args:
        content: the text, UTF-8.
        max_values: most values in it.
        pairs: makes the value of an object from its keys and values in order (`json.loads`' object_pairs_hook).

    Raises:
        BoundsError: it holds too many values, is nested too deep, or holds a number that is too large.
        ValueError: it is not UTF-8, or not JSON.

    Example:
        >>> parse_json(b'{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
    """
    if sum(content.count(mark) for mark in _BETWEEN) > max_values:
        raise BoundsError(f"it holds more than {max_values} values")
    try:
        return json.loads(
            content.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise BoundsError("it is nested too deep") from None


def read_json(path: Path, *, max_bytes: int, max_values: int = MAX_VALUES) -> Any:
    """The value in a JSON file.

    Raises:
        BoundsError: it is no regular file, or larger or fuller than may be read.
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or not JSON.
    """
    return parse_json(read_bounded(path, max_bytes=max_bytes), max_values=max_values)


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        BoundsError: it is something else (a pipe would be waited for, a device never ends), or too large.
        OSError: it cannot be read.
    """
    # Opened without waiting, and looked at when it is open: what the name stands for may change in between.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise BoundsError("it is not a regular file")
        content = handle.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise BoundsError(f"it is larger than {max_bytes} bytes")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BoundsError(f"the number {text[:40]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise BoundsError(f"a whole number in it has {len(text)} digits")
    return int(text)
