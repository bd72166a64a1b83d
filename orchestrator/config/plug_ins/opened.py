"""Notes the files that this process opens while a plug-in is imported: its modules, and data that they read at once."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_read: set[str] = set()
_written: set[str] = set()
_fspath, _accmode, _rdonly = os.fspath, os.O_ACCMODE, os.O_RDONLY
_MOST = 20_000


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, (str, bytes)) and len(_read) < _MOST:
            name = path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")
            reads = isinstance(flags, int) and flags & _accmode == _rdonly
            (_read if reads else _written).add(name)
    elif event == "import" and len(arguments) > 1 and isinstance(arguments[1], str):
        _read.add(arguments[1])  # native modules are not opened by the interpreter


def watch() -> None:
    """Begin to take note, for as long as the process lives."""
    sys.addaudithook(_hook)


def start() -> None:
    """Forget what was opened before."""
    _read.clear()
    _written.clear()


def files() -> list[Path]:
    """Return what was read since `start` and not written, as real files; cached bytecode as its source."""
    found: set[Path] = set()
    for name in sorted(_read - _written):
        with suppress(OSError, ValueError, NotImplementedError):
            path = Path(name)
            if path.suffix == ".pyc":
                path = Path(importlib.util.source_from_cache(name))
            if path.is_file():
                found.add(path.resolve())
    return sorted(found)
