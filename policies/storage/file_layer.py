"""Single operations on files, each of which happens whole or not at all, also when the disk takes only a part.

Every byte that our own code writes goes through `FileLayer.write`, the one place that hands bytes to the system, and
`write_all`, the one place that counts what the system took. A disk that fills up takes a part of what it is given and
refuses the rest later; whoever does not count leaves half a line behind. Tests swap the layer (`using`) for one that
crashes, tears, forgets or takes a part only (`policies.storage.faulty_files`).

Nothing that exists is opened through a link that somebody planted at its name. Reading follows links: prompt files may
be links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path


def reserve(path: Path) -> None:
    """Make an empty file of our own at `path`, in the place of a link or file there: what then opens it by name (a
    library) follows no link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # O_EXCL refuses links too
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        path.unlink()
        os.close(os.open(path, flags, 0o600))


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file of ours for as long as the body runs; what closing it says is heard (a full network disk).

    Raises:
        OSError: ELOOP for a link, and whatever opening or closing gives.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    except BaseException:
        with contextlib.suppress(OSError):  # why the body failed is the news
            os.close(descriptor)
        raise
    os.close(descriptor)


class FileLayer:
    """Single operations on files, each of which either happens or does not."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Hand bytes to the system once; returns how many it took, which may be fewer than it was given."""
        return os.write(descriptor, data)

    def shorten(self, descriptor: int, size: int) -> None:
        """Cut an open file."""
        os.ftruncate(descriptor, size)

    def fill(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let `write` make the file at `path`; it is not durable yet."""
        reserve(path)
        write(path)

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end of a file, all of it or nothing; not durable yet.

        Raises:
            UnfinishedTail: a part was written, and the disk did not let it be cut back.
        """
        with opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
            except OSError as error:
                self._cut_back(descriptor, before, error)
                raise

    def _cut_back(self, descriptor: int, size: int, error: OSError) -> None:
        try:
            if os.fstat(descriptor).st_size > size:
                self.shorten(descriptor, size)
        except OSError as worse:
            raise UnfinishedTail(error.errno, os.strerror(error.errno or 0)) from worse

    def cut(self, path: Path, size: int) -> None:
        """Shorten a file; not durable yet."""
        with opened(path, os.O_RDWR) as descriptor:
            self.shorten(descriptor, size)

    def create(self, path: Path, data: bytes) -> None:
        """Make a new file, whole or not at all: of several makers one wins. Raises FileExistsError for the others."""
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            try:
                write_all(descriptor, data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise

    def sync(self, path: Path) -> None:
        """Make the content of a file durable. When that fails once, doing it again proves nothing: the system has
        forgotten what it could not write, so the content must be written anew.
        """
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name; a file there before is replaced in one step."""
        os.replace(source, target)

    def make_directory(self, path: Path) -> None:
        """Make one folder; nothing happens when it is there."""
        path.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file; nothing happens when it is gone."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with what is in it, or a link as such; nothing happens when it is gone."""
        with contextlib.suppress(FileNotFoundError):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)


class UnfinishedTail(OSError):
    """Half of an append is at the end of the file, and could not be cut off."""


_PLAIN = FileLayer()
_layer: ContextVar[FileLayer] = ContextVar("file_layer", default=_PLAIN)


def current() -> FileLayer:
    """The layer that does the operations of this thread."""
    return _layer.get()


@contextmanager
def using(layer: FileLayer) -> Iterator[FileLayer]:
    """Let `layer` do all operations of this thread meanwhile; others (a heartbeat) go on with plain files."""
    token = _layer.set(layer)
    try:
        yield layer
    finally:
        _layer.reset(token)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however little the system takes at a time.

    Raises:
        OSError: it took nothing any more, or refused; a part may be written.
    """
    rest = memoryview(data)
    while rest:
        taken = current().write(descriptor, rest)
        if taken <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[taken:]


def put(path: Path, data: bytes) -> None:
    """Make `data` the content of a file of ours; not durable yet. For what `FileLayer.fill` is given.

    Raises:
        OSError: it could not be written whole.
    """
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        write_all(descriptor, data)
