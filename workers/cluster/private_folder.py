"""A folder for temporary files that only this user can enter: what libraries make in it, however open, stays private.

Ray makes the folders of its sessions writable for everybody, on purpose, and torch takes compiled code from a folder
with a name that can be guessed, and foreseen, in a place where everybody may make one.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 36
"""A Unix socket's path has 107; below the folder, Ray needs up to 71 for its longest."""


def private_folder() -> Path:
    """The folder for this user's temporary files, made if it is not there, mode 0700.

    It is the one that `RAY_TMPDIR` or `TMPDIR` names when nobody else can enter that, else `pawl-<user>` in it, or in
    /tmp where its path would be too long for sockets. Where somebody else has taken that name, it is a new one each
    time.
    """
    for base in _bases():
        folder = base if _is_private(base) else base / f"pawl-{os.getuid()}"
        if len(str(folder)) <= MAX_CHARACTERS or base == Path("/tmp"):  # nosec B108 # made private
            return _made(folder)
    raise AssertionError("the last base is /tmp")


def places_of_ray() -> list[Path]:
    """Folders in which Ray's sessions of this user may lie: those that Pawl starts, and those of `ray start`."""
    found = []
    for base in _bases():
        found += [base / "ray", base / f"pawl-{os.getuid()}" / "ray"]
    return found


def close_to_others(folder: Path) -> None:
    """Take every right of others on a folder of ours that a library has opened to them."""
    if folder.is_dir() and folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)


def _bases() -> list[Path]:
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    fallback = Path("/tmp")  # nosec B108 # where Ray and torch look, too
    return [Path(named).absolute(), fallback] if named else [fallback]


def _is_private(folder: Path) -> bool:
    try:
        facts = folder.lstat()
    except OSError:
        return False
    is_ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    return is_ours and not stat.S_IMODE(facts.st_mode) & 0o077


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_symlink() and folder.is_dir() and folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)
    if _is_private(folder):
        return folder
    new = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    logger.warning("%s is not ours alone: temporary files go into %s", folder, new)
    return new
