"""Every durable change of a run folder goes through here: what was written survives, and nothing half-written counts.

A `FileLayer` does single operations (`policies.storage.file_layer`); the functions below put them together in the order
that survives a crash after any of them, and turn what a disk refuses into a `StorageError` (exit 75). All lines that
are added to a file, in the driver and in workers, go through `append_line` or `append_unsynced`. Not through the layer
go signs of life and what a library saves into a folder that is synced and renamed as a whole; that is read back before
anything vouches for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policies.base.errors import CorruptStateError, StorageError, explain
from policies.storage.file_layer import FileLayer, current, opened, put, reserve, using

__all__ = [
    "TEMPORARY_SUFFIX",
    "FileLayer",
    "append_line",
    "append_unsynced",
    "create_exclusively",
    "current",
    "cut",
    "cut_torn_line",
    "fsync_directory",
    "make_directory",
    "move",
    "put",
    "remove_file",
    "remove_temporaries",
    "remove_tree",
    "reserve",
    "storage",
    "storage_error",
    "sync_files",
    "sync_or_remove",
    "using",
    "write_atomically",
    "write_json",
    "write_once",
    "write_text",
]

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
    errno.ENODEV: ("the disk is gone", "check the disk or the mount"),
    errno.ENXIO: ("the disk is gone", "check the disk or the mount"),
    errno.ENOTCONN: ("the file system is not connected", "check the mount"),
    errno.EREMOTEIO: ("the disk reports an error", "check the disk or the mount"),
    errno.EUCLEAN: ("the file system is damaged", "check the file system"),
    errno.EMFILE: ("this process has too many files open", "raise `ulimit -n`"),
    errno.ENFILE: ("the machine has too many files open", "raise fs.file-max, or run less on it"),
}

_UNFINISHED: dict[str, tuple[int | None, int]] = {}
"""Files whose last append by this process failed and could not be cut off: inode, and the size to cut back to. A line
that its writer was told is not there must not stay, whole or half; until it is gone nothing is added after it.
"""


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
        told = storage_error(error, path)
        if told is None:
            raise
        raise told from error


def storage_error(error: OSError, path: Path | str) -> StorageError | None:
    """Return what to tell of a disk or machine that refuses; None for errors that say something else."""
    known = _REASONS.get(error.errno or 0)
    if known is None:
        return None
    what, fix = known
    return StorageError(
        f"{what} ({os.strerror(error.errno or 0)}): {path} could not be written or read. "
        f"Set by: the place of the run folder. Fix: {fix}; then `pawl resume`"
    )


def raise_if_disk_failed(error: Exception, path: Path | str) -> None:
    """Raise what a failing disk is told as: a read that gave an error says nothing of what is in the file.

    Raises:
        StorageError: `error` is of the disk or the machine, and not of the content.
    """
    if isinstance(error, OSError) and (told := storage_error(error, path)) is not None:
        raise told from error


@contextmanager
def disk_errors_told() -> Iterator[None]:
    """Tell what a failing disk raised anywhere inside as `StorageError`, with the file that it was about."""
    try:
        yield
    except OSError as error:
        raise_if_disk_failed(error, error.filename or "a file")
        raise


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
    write_atomically(path, lambda temporary: put(temporary, text.encode()))


def write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a new file whose name no one else uses, and make its content (not yet its name) durable.

    Raises:
        StorageError: no room, no permission, a read-only or failing disk. Nothing is left of the file.
    """
    with storage(path):
        make_directory(path.parent)
        try:
            current().fill(path, write)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        sync_or_remove(path)


def create_exclusively(path: Path, data: bytes) -> bool:
    """Make a file durably unless there is one; says whether it was made. Of several makers one wins."""
    with storage(path):
        make_directory(path.parent)
        try:
            current().create(path, data)
        except FileExistsError:
            return False
        sync_or_remove(path)
        current().sync_directory(path.parent)
        return True


def sync_or_remove(path: Path) -> None:
    """Make the content of a file durable, or remove it: a second fsync would find nothing to write, and say yes.

    Raises:
        OSError: it could not be made durable.
    """
    try:
        current().sync(path)
    except OSError:
        # Not through the layer: tidying up after a failure is no step of the write.
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def append_line(path: Path, line: bytes) -> None:
    """Add a line, newline included, and make it durable before returning.

    Raises:
        StorageError: no room, no permission, a read-only or failing disk. Nothing of the line is left, or it is cut
            off before anything else is added.
    """
    _append(path, line, durably=True)


def append_unsynced(path: Path, line: bytes) -> None:
    """Add a line, newline included, that may be lost with the power: whole or not at all otherwise.

    Raises:
        StorageError: as for `append_line`.
    """
    _append(path, line, durably=False)


def cut_torn_line(path: Path) -> int:
    """Cut off a last line that was not finished; returns the size of what is whole, 0 where there is no file.

    Raises:
        StorageError: the disk refused.
    """
    with storage(path):
        return _ready_to_append(path)[1]


def _append(path: Path, line: bytes, *, durably: bool) -> None:
    if not line.endswith(b"\n"):
        raise ValueError(f"a line for {path} has no end")
    with storage(path):
        inode, before = _ready_to_append(path)
        if inode is None:
            make_directory(path.parent)
        try:
            current().append(path, line)
            if durably:
                current().sync(path)
                if inode is None:
                    current().sync_directory(path.parent)
        except OSError:
            _take_back(path, inode, before)
            raise
        except BaseException:  # interrupted: its writer does not know whether the line is there
            _UNFINISHED[str(path)] = (inode, before)
            raise


def _ready_to_append(path: Path) -> tuple[int | None, int]:
    """Inode and size of a file that ends with a whole line; None and 0 when there is none yet.

    What this process could not take back, or another one died over, is cut off first: a line never runs into a half.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        _UNFINISHED.pop(str(path), None)
        return None, 0
    inode, whole = _UNFINISHED.get(str(path), (None, status.st_size + 1))
    if inode not in (None, status.st_ino) or whole > status.st_size:
        whole = _end_of_last_line(path, status.st_size)
    if whole < status.st_size:
        current().cut(path, whole)
    _UNFINISHED.pop(str(path), None)
    return status.st_ino, whole


def _end_of_last_line(path: Path, size: int, block: int = 2**16) -> int:
    """Bytes up to and with the last newline among the first `size` of a file."""
    if size == 0:
        return 0
    with opened(path, os.O_RDONLY) as descriptor:
        if os.pread(descriptor, 1, size - 1) == b"\n":
            return size
        while size > 0:
            start = max(0, size - block)
            found = os.pread(descriptor, size - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            size = start
    return 0


def _take_back(path: Path, inode: int | None, before: int) -> None:
    """Cut off what a failed append left, also a whole line that did not become durable; note it when that fails."""
    try:
        if path.lstat().st_size > before:
            current().cut(path, before)
    except FileNotFoundError:
        return
    except OSError:
        _UNFINISHED[str(path)] = (inode, before)


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
        _UNFINISHED.pop(str(path), None)
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
