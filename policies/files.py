"""Every durable change of a run folder goes through here: what was written survives, and nothing half-written counts.

A `FileLayer` does single operations; the functions below put them together in the order that survives a
crash after any of them. Tests swap the layer (`using`) for one that crashes, tears or forgets
(`policies.faulty_files`). Not through the layer go: `events.jsonl` (for people, a torn line is skipped), the
trainer's step log, the judge's cache, and what a library saves into a folder that is synced and renamed as a whole.
All of them open what they create with `reserve`, `open_to_append` or `open_to_change`: a link that somebody planted at
the name is never written through. Reading follows links: prompt files may be links.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, cast

from policies.errors import CorruptStateError, StorageError, explain

TEMPORARY_SUFFIX = ".tmp"

_REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EIO: ("the disk reports an error", "check the disk or the mount"),
    errno.EROFS: ("the file system is read-only", "mount it writable"),
    errno.EACCES: ("permission is denied", "give the user that runs Pawl access"),
    errno.EPERM: ("permission is denied", "give the user that runs Pawl access"),
    errno.EFBIG: ("the file is larger than this process may write", "raise `ulimit -f`"),
    errno.ESTALE: ("the network file system lost the file", "check the mount"),
}


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what a failing disk raises into an error that names the path and what to do.

    Raises:
        StorageError: no room, no permission, a read-only or failing disk.
        CorruptStateError: a link stands where a file of the run belongs.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptStateError(
                explain(
                    "a link stands where a file of the run belongs, and is not written through",
                    value=str(path),
                    where="whoever made the link",
                    fix="look where it leads, remove it or put the file in its place, then `pawl resume`",
                )
            ) from error
        known = _REASONS.get(error.errno or 0)
        if known is None:
            raise
        what, fix = known
        raise StorageError(
            f"{what} ({os.strerror(error.errno or 0)}): {path} could not be written or read. "
            f"Set by: the place of the run folder. Fix: {fix}; then `pawl resume`"
        ) from error


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


def open_to_append(path: Path) -> BinaryIO:
    """Open a file of ours at its end, unbuffered, and make it if need be. Raises OSError (ELOOP) for a link."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return cast(BinaryIO, os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0))


def open_to_change(path: Path) -> BinaryIO:
    """Open a file of ours that exists, to read and write, unbuffered. Raises OSError (ELOOP) for a link."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    return cast(BinaryIO, os.fdopen(os.open(path, flags), "r+b", buffering=0))


class FileLayer:
    """Single operations on files, each of which either happens or does not."""

    def fill(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let `write` make the file at `path`; it is not durable yet."""
        reserve(path)
        write(path)

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end of a file; not durable yet."""
        with open_to_append(path) as handle:
            handle.write(data)

    def cut(self, path: Path, size: int) -> None:
        """Shorten a file; not durable yet."""
        with open_to_change(path) as handle:
            handle.truncate(size)

    def create(self, path: Path, data: bytes) -> None:
        """Make a new file. Raises FileExistsError when there is one: of several makers one wins."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as handle:
            handle.write(data)

    def sync(self, path: Path) -> None:
        """Make the content of a file durable."""
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


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then make it durable and move it into place.

    Raises:
        StorageError: no room, no permission, a read-only or failing disk. The old file is still there.
    """
    with storage(path):
        make_directory(path.parent)
        own = f"{os.getpid()}-{secrets.token_hex(4)}"  # nobody can plant a link at a name to come
        temporary = path.with_name(f".{path.name}.{own}{TEMPORARY_SUFFIX}")
        try:
            current().fill(temporary, write)
            current().sync(temporary)
            current().rename(temporary, path)
        except BaseException:
            # Not through the layer: tidying up after a failure is no step of the write.
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        current().sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably: readers see the old content or the new one, never a part."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file durably: readers see the old content or the new one, never a part."""
    write_atomically(path, lambda temporary: _put(temporary, text.encode()))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a new file whose name no one else uses, and make its content (not yet its name) durable."""
    with storage(path):
        make_directory(path.parent)
        current().fill(path, write)
        current().sync(path)


def create_exclusively(path: Path, data: bytes) -> bool:
    """Make a file durably unless there is one; says whether it was made. Of several makers one wins."""
    with storage(path):
        make_directory(path.parent)
        try:
            current().create(path, data)
        except FileExistsError:
            return False
        current().sync(path)
        current().sync_directory(path.parent)
        return True


def append_line(path: Path, line: bytes) -> None:
    """Add a line, newline included, and make it durable before returning."""
    with storage(path):
        is_new = not path.exists()
        if is_new:
            make_directory(path.parent)
        current().append(path, line)
        current().sync(path)
        if is_new:
            current().sync_directory(path.parent)


def cut(path: Path, size: int) -> None:
    """Shorten a file durably."""
    with storage(path):
        current().cut(path, size)
        current().sync(path)


def move(source: Path, target: Path) -> None:
    """Move a file or a whole folder on one file system, durably. Its content must be durable already.

    The old name is not made durably gone: after a power failure both may be there.
    """
    with storage(target):
        make_directory(target.parent)
        current().rename(source, target)
        current().sync_directory(target.parent)


def sync_files(directory: Path) -> None:
    """Make the files of one folder, and their names, durable."""
    with storage(directory):
        for path in sorted(directory.iterdir()):
            if path.is_file():
                current().sync(path)
        current().sync_directory(directory)


def make_directory(path: Path) -> None:
    """Make a folder and what is missing above it, durably; nothing happens when it is there."""
    if path.is_dir():
        return
    with storage(path):
        if not path.parent.is_dir():
            make_directory(path.parent)
        current().make_directory(path)
        current().sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file durably; nothing happens when it is gone."""
    if not path.exists() and not path.is_symlink():
        return
    with storage(path):
        current().remove(path)
        current().sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder with what is in it; a crash in the middle leaves a part, and doing it again completes it."""
    if not path.exists() and not path.is_symlink():
        return
    with storage(path):
        current().remove_tree(path)


def remove_temporaries(directory: Path) -> list[Path]:
    """Remove what unfinished writes left directly in `directory`; returns what was removed."""
    found = [p for p in sorted(directory.glob(f".*{TEMPORARY_SUFFIX}")) if p.is_file()]
    for path in found:
        remove_file(path)
    return found


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    with storage(path):
        current().sync_directory(path)
