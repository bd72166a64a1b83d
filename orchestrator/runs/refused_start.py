"""A run that is refused leaves nothing: what its start had made by then is removed again.

Almost everything is refused by the preflight, before anything is made. What can be found out only once the run is put
together (a bucket that belongs to another run, an engine that refuses a setting) comes after the folder was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.runs.folder import RunFolder
from policies.base.errors import REFUSED, LeaseError, PawlError
from policies.storage import files


@dataclass
class Start:
    """The start of a new run."""

    fence: Callable[[], None] | None = None
    """Raises when another process has the run by now; none before the run is claimed."""

    def is_ours(self) -> bool:
        """Tell whether what lies in the folder was made by this process, and nobody else goes on with it."""
        if self.fence is None:
            return False
        try:
            self.fence()
        except LeaseError:
            return False
        return True


@contextmanager
def leaving_nothing(folder: RunFolder) -> Iterator[Start]:
    """Remove what was made of `folder` meanwhile, and of the folders above it, when the start of the run is refused.

    A run with a finished phase is not removed: it holds results.
    """
    start = Start()
    before = _names(folder.path)
    missing = [p for p in (folder.path, *folder.path.parents) if not p.exists()]
    try:
        yield start
    except PawlError as error:
        if error.exit_code == REFUSED and not _has_results(folder) and start.is_ours():
            with contextlib.suppress(OSError, PawlError):  # the refusal is what is told
                _remove(folder, before, missing)
        raise


def _names(path: Path) -> frozenset[str]:
    return frozenset(p.name for p in path.iterdir()) if path.is_dir() else frozenset()


def _has_results(folder: RunFolder) -> bool:
    return folder.journal.exists() and folder.journal.stat().st_size > 0


def _remove(folder: RunFolder, before: frozenset[str], missing: list[Path]) -> None:
    # `run.json` first: a removal that is cut off leaves a name that is free again.
    files.remove_file(folder.identity)
    for name in sorted(_names(folder.path) - before):
        path = folder.path / name
        if path.is_dir() and not path.is_symlink():
            files.remove_tree(path)
        else:
            files.remove_file(path)
    for path in missing:
        path.rmdir()  # not empty: somebody else has put something there, and it stays
