"""The copies of a run's files on a node that does not see its folder: who uses which, and which may go.

Workers of one node share copies. A worker holds a shared lock (`flock`, on the node's own disk) on what its last call
asked for; what it does not ask for any more is removed by whoever lets go of it last. A lock ends with its process.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from policies.base.errors import WorkerLostError
from policies.storage import files
from policies.storage.artifacts import marker_path
from workers.cluster.heartbeat import report_progress

FOLDER = ".copies"
NUM_LOCKS = 256
"""Lock files of a run; paths share them by chance, which only makes one wait for the other."""
WAIT_SECONDS = 1800.0
"""Longest wait for another worker of this node that fetches the same file."""


class Copies:
    """The part of its node's copies that one worker uses."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._used: dict[str, int] = {}
        """Descriptor of the lock on each path that the last call asked for."""
        self._dropped: set[str] = set()

    def use(self, paths: Sequence[str]) -> None:
        """Hold `paths` from now on, and let go of what was held before."""
        for path in paths:
            if path not in self._used:
                self._used[path] = self._lock(path, "use", fcntl.LOCK_SH)
        for path in self._used.keys() - set(paths):
            os.close(self._used.pop(path))
            self._dropped.add(path)
        self._dropped -= set(paths)

    @contextmanager
    def fetching(self, path: str) -> Iterator[None]:
        """Alone among this node's workers: the second finds what the first fetched."""
        descriptor = self._lock(path, "fetch", fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def keep_only(self, top: Path, kept: Collection[Path]) -> None:
        """Remove the files at and below `top` that are not in `kept`, inside the run's copies only."""
        if not self._ours(top):
            return
        if not kept:
            _remove(top)
        elif top.is_dir():
            for path in sorted(top.iterdir()):
                if not any(each == path or path in each.parents for each in kept):
                    _remove(path)

    def drop_unused(self) -> None:
        """Remove copies that this worker let go and no other holds; the others are tried again next time."""
        for path in sorted(self._dropped):
            try:
                descriptor = self._try(path, "use", fcntl.LOCK_EX)
            except BlockingIOError:  # another worker uses it
                continue
            try:
                if self._ours(Path(path)):
                    _remove(Path(path))
            finally:
                os.close(descriptor)
            self._dropped.discard(path)

    def _ours(self, path: Path) -> bool:
        return path.is_relative_to(self._root)

    def _lock(self, path: str, kind: str, how: int) -> int:
        """A lock, waited for with signs of life.

        Raises:
            WorkerLostError: it was not to be had in time.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return self._try(path, kind, how)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise WorkerLostError(
                        f"another worker of this node has been fetching {path} for {WAIT_SECONDS:.0f} s. "
                        "Fix: check the node's network and disk; the work is handed out again"
                    ) from None
            report_progress()
            time.sleep(0.05)

    def _try(self, path: str, kind: str, how: int) -> int:
        """The descriptor that holds a lock.

        Raises:
            BlockingIOError: another holds it.
        """
        folder = self._root / FOLDER
        files.make_directory(folder)
        number = zlib.crc32(path.encode()) % NUM_LOCKS
        descriptor = os.open(folder / f"{number:03d}.{kind}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _remove(path: Path) -> None:
    if path.is_dir():
        files.remove_tree(path)
        return
    with suppress(FileNotFoundError):  # another worker of this node was faster
        files.remove_file(marker_path(path))
        files.remove_file(path)
