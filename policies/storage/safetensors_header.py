"""The header of a safetensors file, checked as the library does, and without it: sizes before anything is read.

Format: 8 bytes with the header's length, little-endian; the header, JSON: by name {dtype, shape, data_offsets}; then
the data, without gaps (https://github.com/huggingface/safetensors, `Metadata::validate`).
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from policies.base.errors import InputError
from policies.storage.bounded_json import BoundsError, parse_json

MAX_HEADER = 100_000_000
"""The library's own limit."""
_MAX_VALUES = 1_500_000
"""A tensor is six of them; the largest file in use has some 50,000 tensors."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one value, by dtype."""


class Contents(NamedTuple):
    """The contents of a file."""

    parameters: int
    expected_bytes: int
    """Of the whole file; a shorter one is cut off."""
    names: frozenset[str]


def read_header(file: Path) -> Contents:
    """Number of values, size and names of the tensors of a safetensors file, from its header.

    Raises:
        InputError: the header cannot be read, or describes what no library would load.
    """
    try:
        return _read(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = str(error)[:200] if isinstance(error, (OSError, ValueError)) else repr(error)[:200]
        raise InputError(
            f"{file} is not a whole safetensors file ({said}). Set by: policy.model. Fix: copy "
            "or download it again"
        ) from error


def _read(file: Path) -> Contents:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BoundsError("it is not a regular file")
        start = handle.read(8)
        if len(start) < 8:
            raise ValueError(f"it has {len(start)} bytes")
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER, found.st_size - 8):
            raise BoundsError(f"its header claims {length} bytes")
        header = parse_json(handle.read(length), max_values=_MAX_VALUES, pairs=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    _check_metadata(header.pop("__metadata__", None))
    spans = sorted(_span(name, tensor) for name, tensor in header.items())
    end = 0
    for begins, ends, name, _ in spans:
        if begins != end:
            kind = "overlaps the one before" if begins < end else "leaves a gap before it"
            raise ValueError(f"tensor {name[:80]!r} {kind}")
        end = ends
    if found.st_size > 8 + length + end:
        raise ValueError(f"{found.st_size - 8 - length - end} bytes behind its last tensor")
    return Contents(sum(each[3] for each in spans), 8 + length + end, frozenset(header))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header gives a key twice")
    return found


def _check_metadata(value: object) -> None:
    if value is not None and not (
        isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    ):
        raise ValueError("its __metadata__ is no table of texts")


def _span(name: str, tensor: dict[str, Any]) -> tuple[int, int, str, int]:
    """Tell where a tensor lies, and how many values it has."""
    shape, offsets, bits = tensor["shape"], tensor["data_offsets"], _BITS.get(str(tensor["dtype"]))
    if set(tensor) != {"dtype", "shape", "data_offsets"} or bits is None:
        raise ValueError(f"tensor {name[:80]!r} has an unknown dtype or key")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError(f"tensor {name[:80]!r} has no shape or no offsets")
    if len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets)):
        raise ValueError(f"tensor {name[:80]!r} has a shape or offsets that are no sizes")
    count = math.prod(shape)
    if offsets[0] + -(-count * bits // 8) != offsets[1] or count * bits % 8:
        raise ValueError(f"the shape of tensor {name[:80]!r} does not fit its offsets")
    return offsets[0], offsets[1], name, count
