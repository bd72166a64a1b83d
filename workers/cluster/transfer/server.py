"""The driver's end of the file transfer: gives out and takes in files of a run for nodes that do not see its folder.

It lives on the driver's node and keeps nothing that counts: each operation may be repeated, and another server goes on
where one died. It reads the run folder and the models that the run names, nothing else; it writes only where workers'
drafts, signs of life and checkpoints go, so a finished file cannot be replaced through it; and only for the driver that
holds the newest epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from policies.base.errors import ArtifactError
from policies.storage import files
from policies.storage.artifacts import file_sha256, marker_path
from policies.storage.guarding import committing
from workers.cluster.heartbeat import write_unsynced
from workers.cluster.transfer.shared_folder import RunFiles

PIECE_BYTES = 8 * 2**20
"""What is in memory of a file on its way, at either end."""


class FileFact(NamedTuple):
    """A file on the driver's node."""

    path: str
    size: int
    """Bytes."""
    mtime_ns: int


class FileServer:
    """Reads and writes files on the driver's node, within bounds."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._root = Path(files.root)
        self._readable = [Path(each).resolve() for each in (files.root, *files.readable)]
        self._writable = [tuple(Path(each).parts) for each in files.writable]
        self._digests: dict[FileFact, str] = {}
        """sha256 of the files outside the run folder: models are large, and each worker asks."""

    def check(self) -> None:
        """Return when this process sees the run folder.

        Raises:
            ConfigurationError: the driver and Ray's node beside it do not see the same files.
        """
        if not self._files.seen_here():
            raise self._files.not_shared("Ray's node on the driver's own machine")

    # --- giving out

    def facts(self, paths: Sequence[str]) -> list[FileFact]:
        """The files at or below each path, with the marker beside a file; none for what is not there.

        Raises:
            ArtifactError: a path, or a link below it, leads to where nothing may be read.
        """
        found = {}
        for path in paths:
            top = self._for_reading(path)
            for each in files_at(top):
                status = self._for_reading(str(each)).stat()
                found[str(each)] = FileFact(str(each), status.st_size, status.st_mtime_ns)
        return list(found.values())

    def piece(self, path: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a file from `offset` on."""
        with self._for_reading(path).open("rb") as handle:
            handle.seek(offset)
            return handle.read(min(size, PIECE_BYTES))

    def sha256(self, path: str) -> str:
        """sha256 of a file as it lies here."""
        plain = self._for_reading(path)
        if plain.is_relative_to(self._root):
            return file_sha256(plain)
        status = plain.stat()
        fact = FileFact(path, status.st_size, status.st_mtime_ns)
        if fact not in self._digests:
            self._digests[fact] = file_sha256(plain)
        return self._digests[fact]

    # --- taking in

    def put(self, path: str, upload: str, offset: int, data: bytes) -> None:
        """Add a piece to the upload of a file; `settle` makes it the file. Doing it again changes nothing."""
        _write_at(uploading(self._for_writing(path), upload), offset, data)

    def settle(self, path: str, upload: str, size: int, sha256: str) -> None:
        """Make a whole upload the file at `path`, durably. Doing it again changes nothing.

        Raises:
            ArtifactError: what arrived is not what was sent.
            LeaseError: another driver holds the run.
        """
        target = self._for_writing(path)
        temporary = uploading(target, upload)
        source = temporary if temporary.exists() else target
        if not source.is_file() or source.stat().st_size != size or file_sha256(source) != sha256:
            raise ArtifactError(
                f"{path} did not arrive as it was sent ({size} bytes, sha256 {sha256[:12]}). "
                "Fix: `pawl resume` makes it again; if it comes back, check the network and the disks"
            )
        with committing(self._files.guard):
            if source == temporary:
                with files.storage(target):
                    files.sync_or_remove(temporary)  # it is then sent anew, not synced again
                files.move(temporary, target)

    def settle_folder(self, path: str, upload: str) -> None:
        """Make a folder whose files all settled below `uploading(path, upload)` the folder at `path`."""
        target = self._for_writing(path)
        source = uploading(target, upload)
        if not source.is_dir() and target.is_dir():
            return
        with committing(self._files.guard):
            files.remove_tree(target)
            files.move(source, target)

    def grow(self, path: str, offset: int, data: bytes) -> None:
        """Write the bytes of a growing file from `offset` on; what stood there goes. For logs only."""
        _write_at(self._for_writing(path), offset, data)

    def tell(self, path: str, sign: dict[str, object]) -> None:
        """Replace a sign of life."""
        write_unsynced(self._for_writing(path), sign)

    def remove(self, path: str) -> None:
        """Remove a folder that a worker gave."""
        with committing(self._files.guard):
            files.remove_tree(self._for_writing(path))

    # --- within bounds

    def _for_reading(self, path: str) -> Path:
        plain = _plain(path)
        real = plain.resolve()
        if not any(real.is_relative_to(top) for top in self._readable):
            raise ArtifactError(
                f"{path} is refused: it leads out of the run folder and the models of the run"
            )
        return plain

    def _for_writing(self, path: str) -> Path:
        plain = _plain(path)
        parts = plain.relative_to(self._root).parts if plain.is_relative_to(self._root) else ()
        allowed = any(
            len(parts) > len(pattern) and all(map(fnmatchcase, parts, pattern))
            for pattern in self._writable
        )
        inside = plain.parent.resolve().is_relative_to(self._readable[0])
        if not allowed or not inside or plain.is_symlink():
            raise ArtifactError(
                f"{path} is refused: workers write drafts, checkpoints and signs of life only"
            )
        return plain


def uploading(path: Path, upload: str) -> Path:
    """Tell where a file or folder goes before it is whole."""
    if "/" in upload or "\0" in upload:
        raise ArtifactError(f"{upload!r} is refused as the name of an upload")
    return path.with_name(f".{path.name}.{upload}{files.TEMPORARY_SUFFIX}")


def _plain(path: str) -> Path:
    plain = Path(path)
    if not plain.is_absolute() or ".." in plain.parts or "\0" in path:
        raise ArtifactError(f"{path!r} is refused: only whole paths without `..` are served")
    return plain


def files_at(top: Path) -> Iterator[Path]:
    """A file and its marker, or all files below a folder; hidden names are unfinished things and left out."""
    if not top.is_dir():
        yield from (path for path in (top, marker_path(top)) if path.is_file())
        return
    for parent, directories, names in os.walk(top):  # does not follow links to folders
        directories[:] = sorted(name for name in directories if name[0] != ".")
        yield from (Path(parent, name) for name in sorted(names) if name[0] != ".")


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with files.storage(path):
        if offset == 0:
            files.make_directory(path.parent)
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise ArtifactError(
                f"{path} has {size} bytes here, and the next piece begins at {offset}. Fix: `pawl resume`"
            )
        if size > offset:  # the piece came twice, or the file was begun anew
            files.current().cut(path, offset)
        files.current().append(path, data)
