"""Prompts from JSON Lines files: one object per line, UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.prompts.paths import existing_file, listed
from orchestrator.prompts.row_config import RowConfig
from orchestrator.prompts.row_values import Row, RowError
from orchestrator.prompts.rows import RowSource
from policies.base.errors import InputError, explain
from policies.storage.bounded_json import parse_json

MAX_LINE_BYTES = 16 * 2**20
MAX_LINE_VALUES = 500_000
"""Values of one row: tests of a program have thousands."""
MAX_BLANK_LINES = 1_000_000
"""Blank lines in a row: a file of nothing else is not read to its end."""

_OTHER_KINDS = {
    b"\x1f\x8b": ("compressed with gzip", "decompress it: gzip -dk FILE"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "decompress it: zstd -d FILE"),
    b"BZh": ("compressed with bzip2", "decompress it: bzip2 -dk FILE"),
    b"\xfd7zXZ": ("compressed with xz", "decompress it: xz -dk FILE"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1": ("a Parquet file", "use type: parquet"),
    b"\xff\xfe": ("UTF-16 (byte order mark at byte 0)", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 (byte order mark at byte 0)", "save it as UTF-8"),
    b"\xef\xbb\xbf": (
        "UTF-8 with a byte order mark at byte 0",
        "save it as UTF-8 without one",
    ),
}
"""What a file that is not JSON lines begins with: nothing is decompressed here, so nothing can be a bomb."""
_PACKED_SUFFIXES = frozenset({".gz", ".zst", ".bz2", ".xz", ".zip"})


class JsonlSource(RowSource):
    """Reads the files in the order given. Blank lines are skipped; CR, LF and CRLF end a line."""

    class Config(RowConfig):
        """Settings of `jsonl`."""

        path: str | tuple[str, ...]
        """File, or files; relative to the config file."""

    config: Config

    def rows(self) -> Iterator[Row | RowError]:
        for name in listed(self.config.path):
            path = existing_file(name)
            with path.open("rb") as handle:
                yield from _read(handle, path)

    def origin(self) -> str:
        return ", ".join(listed(self.config.path))


def _read(handle: BinaryIO, path: Path) -> Iterator[Row | RowError]:
    _check_start(handle.read(8), path)
    handle.seek(0)
    number = blank = 0
    while block := handle.readline(MAX_LINE_BYTES + 1):
        if len(block) > MAX_LINE_BYTES:
            yield RowError(
                f"{path}:{number + 1}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
            )
            return
        # A bare CR cannot stand in JSON text, so it can only be a line end (or a part of CRLF).
        for line in block.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
            number += 1
            blank = 0 if line.strip() else blank + 1
            if blank > MAX_BLANK_LINES:
                yield RowError(f"{path}:{number}: {blank} blank lines in a row")
                return
            if blank == 0:
                yield _parse(line, f"{path}:{number}")


def _check_start(start: bytes, path: Path) -> None:
    for magic, (what, fix) in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise InputError(
                explain(
                    f"the prompt file is {what}", value=str(path), where="prompts.*.path", fix=fix
                )
            )
    if path.suffix.lower() in _PACKED_SUFFIXES:
        raise InputError(
            explain(
                f"the prompt file is called {path.suffix} and is not compressed",
                value=str(path),
                where="prompts.*.path",
                fix="name it .jsonl if it is whole, or fetch it again",
            )
        )


def _parse(line: bytes, where: str) -> Row | RowError:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return RowError(f"{where}: not UTF-8 at byte {error.start} of the line: {error.reason}")
    try:
        value = parse_json(line, max_values=MAX_LINE_VALUES)
    except json.JSONDecodeError as error:
        return RowError(f"{where}: not JSON at column {error.colno}: {error.msg}")
    except ValueError as error:
        return RowError(f"{where}: {error}")
    if not isinstance(value, dict):
        return RowError(f"{where}: expected an object, got {type(value).__name__}")
    return Row(where, value)
