"""Tells the names in a folder of a run that are the run's own: numbers as it writes them. Whatever else lies there is
foreign.

Systems, editors, sync tools and people leave files everywhere (`.DS_Store`, `.nfs000..`, `0001 (copy)`, `x.json~`).
Nothing that lists a folder may take such a name for one of ours, or fail on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

_BACKUP = re.compile(
    r"\..*|.*~|#.*#|.*\.(bak|orig|rej|old|swp|swo|part|crdownload)|.* \(\d+\)|Thumbs\.db|desktop\.ini"
)
_TEMPORARY = ".tmp"


def numbered(
    folder: Path, *, width: int = 4, prefix: str = "", suffix: str = ""
) -> list[tuple[int, Path]]:
    """Paths that are called `prefix`, a number in at least `width` digits, `suffix`; sorted by number.

    Example: of `0001`, `0002`, `00003`, `0001.bak`, `.DS_Store` the first two. Empty where there is no such folder.
    """
    pattern = re.compile(rf"{re.escape(prefix)}([0-9]{{{width},15}}){re.escape(suffix)}")
    found = []
    for name in _names(folder):
        match = pattern.fullmatch(name)
        if match and match[1] == f"{int(match[1]):0{width}d}":
            found.append((int(match[1]), folder / name))
    return sorted(found)


def numbered_folders(folder: Path, *, width: int = 4) -> list[tuple[int, Path]]:
    """The folders in `folder` that are called by a number, sorted by it."""
    return [(n, path) for n, path in numbered(folder, width=width) if path.is_dir()]


def strangers(folder: Path, own: Collection[Path]) -> list[Path]:
    """Paths in `folder` besides `own`, but for temporaries of ours, which a resume removes."""
    known = {path.name for path in own}
    return [
        folder / name
        for name in _names(folder)
        if name not in known and not (name.startswith(".") and name.endswith(_TEMPORARY))
    ]


def is_leftover_of_others(name: str) -> bool:
    """Tell a file that was left by a system, an editor or a copy by its name, whatever is in it."""
    if name.startswith(".") and name.endswith(_TEMPORARY):
        return False  # ours: it waits for a resume
    return _BACKUP.fullmatch(name) is not None or not _is_text(name)


def shown(path: Path) -> str:
    """A path for messages; bytes that are no text are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
