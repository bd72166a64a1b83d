"""Nobody else reads or plants files of a run: permissions of what is written, and no way out by a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policies.base.errors import CorruptStateError

UMASK = 0o077
"""Files of a run belong to the user alone: prompts and model text may be private."""


@contextmanager
def private_files() -> Iterator[None]:
    """Whatever this process writes meanwhile, the user alone can read."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def check_confined(folder: Path) -> None:
    """Refuse a run folder through which others could make us read or write somewhere else.

    Raises:
        CorruptStateError: everybody may write into it, or a link in it leads out of it; names which.
    """
    root = folder.resolve()
    if stat.S_IMODE(root.stat().st_mode) & stat.S_IWOTH:
        raise CorruptStateError(
            f"everybody may write into the run folder (got {root}, mode {stat.S_IMODE(root.stat().st_mode):04o}). "
            f"Set by: its permissions. Fix: chmod -R go-w {root}, after a look at what is in it"
        )
    for parent, directories, names in os.walk(root):  # does not follow links
        for name in (*directories, *names):
            path = Path(parent, name)
            if path.is_symlink() and not _leads_into(path, root):
                raise CorruptStateError(
                    f"a link in the run folder leads out of it (got {path} -> {os.readlink(path)}). Set by: whoever "
                    "made the folder. Fix: replace it with the file that it means, or remove it"
                )


def _leads_into(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop leads nowhere
        return False
