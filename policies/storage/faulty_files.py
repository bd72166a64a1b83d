"""File layers that fail on purpose: crash before an operation, tear one, lose power, take a part, or refuse. For tests.

The promise that a run survives a crash, or a disk that fills up or breaks, anywhere is proved by doing it at each
operation in turn.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from policies.storage.file_layer import FileLayer

CrashMode = Literal["before", "torn", "power"]
"""`before`: the process dies and the operation does not happen. `torn`: it dies when half of the data is
written. `power`: it dies, and whatever was not synced by then is lost too."""

DiskFault = Literal["short", "half", "once", "lasting"]
"""`short`: the disk takes a part of a write, and the rest when asked again. `half`: a part, and refuses the rest.
`once`: it refuses one operation. `lasting`: it takes a part, and refuses everything from then on."""

EXIT_CODE = 137
"""As a process ended by SIGKILL."""


def die() -> None:
    """End the process as a SIGKILL does: nothing is flushed, no handler runs."""
    os._exit(EXIT_CODE)


class CountingFiles(FileLayer):
    """Counts operations; `about_to` is called before each one."""

    def __init__(self) -> None:
        self.count = 0
        self.log: list[str] = []

    def about_to(self, operation: str, path: Path) -> None:
        """Do what is to happen before an operation."""
        self.count += 1
        self.log.append(f"{operation} {path}")

    def fill(self, path: Path, write: Callable[[Path], None]) -> None:
        self.about_to("fill", path)
        super().fill(path, write)

    def append(self, path: Path, data: bytes) -> None:
        self.about_to("append", path)
        super().append(path, data)

    def cut(self, path: Path, size: int) -> None:
        self.about_to("cut", path)
        super().cut(path, size)

    def create(self, path: Path, data: bytes) -> None:
        self.about_to("create", path)
        super().create(path, data)

    def sync(self, path: Path) -> None:
        self.about_to("sync", path)
        super().sync(path)

    def sync_directory(self, path: Path) -> None:
        self.about_to("sync_directory", path)
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self.about_to("rename", target)
        super().rename(source, target)

    def make_directory(self, path: Path) -> None:
        self.about_to("make_directory", path)
        super().make_directory(path)

    def remove(self, path: Path) -> None:
        self.about_to("remove", path)
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        self.about_to("remove_tree", path)
        super().remove_tree(path)


class RefusingFiles(CountingFiles):
    """Raises an operating-system error from the `first`-th operation on, until `allowed` says otherwise."""

    def __init__(self, code: int, first: int = 1) -> None:
        super().__init__()
        self.code = code
        self.first = first

    def about_to(self, operation: str, path: Path) -> None:
        super().about_to(operation, path)
        if self.count >= self.first and not operation.startswith("remove"):
            raise OSError(self.code, os.strerror(self.code), str(path))


class FailingDisk(CountingFiles):
    """A disk that fails at the `fail_at`-th operation, counted from 1, as `fault` says, with the error `code`.

    A full disk still lets files be removed and cut; one that gives EIO lets nothing be done.
    """

    WRITING = frozenset({"fill", "append", "create"})

    def __init__(self, fail_at: int, fault: DiskFault, code: int = errno.ENOSPC) -> None:
        super().__init__()
        self.fail_at, self.fault, self.code = fail_at, fault, code
        self.has_failed = False
        """Something was refused, or taken in part only."""
        self._writes_left = -1
        """Writes that the failing operation still gets; -1 outside of it."""

    def about_to(self, operation: str, path: Path) -> None:
        super().about_to(operation, path)
        self._writes_left = -1
        if self.count == self.fail_at:
            if operation in self.WRITING and self.fault != "once":
                self._writes_left = 1
            elif self.fault in ("once", "lasting"):
                self._refuse(path)
        elif self._is_gone and not self._still_works(operation):
            self._refuse(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._writes_left == 1 and len(data) > 1:
            self.has_failed, self._writes_left = True, 0
            return super().write(descriptor, data[: len(data) // 2])
        if (self._writes_left == 0 and self.fault != "short") or self._is_gone:
            self._writes_left = -1
            self._refuse(Path(str(descriptor)))
        return super().write(descriptor, data)

    def shorten(self, descriptor: int, size: int) -> None:
        if self._is_gone and not self._still_works("cut"):
            self._refuse(Path(str(descriptor)))
        super().shorten(descriptor, size)

    @property
    def _is_gone(self) -> bool:
        return self.fault == "lasting" and self.has_failed

    def _still_works(self, operation: str) -> bool:
        return self.code == errno.ENOSPC and operation in ("remove", "remove_tree", "cut")

    def _refuse(self, path: Path) -> None:
        self.has_failed = True
        raise OSError(self.code, os.strerror(self.code), str(path))


class FailingReads:
    """Makes the `fail_at`-th opening of a file (or listing of a folder) to read below `root` give EIO, and perhaps all
    later ones. For the rest of the process: Python lets nobody take such a hook away.
    """

    def __init__(self, root: Path, fail_at: int, *, lasting: bool = False) -> None:
        self.root, self.fail_at, self.lasting = str(root), fail_at, lasting
        self.count = 0
        self.has_failed = False
        self._below = (self.root + os.sep, os.fsencode(self.root + os.sep))
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir"):
            return
        path = arguments[0]
        if isinstance(path, str):
            below = path.startswith(self._below[0])
        else:
            below = isinstance(path, bytes) and path.startswith(self._below[1])
        if not below or (event == "open" and _opens_to_write(arguments[2])):
            return
        self.count += 1
        if self.count == self.fail_at or (self.lasting and self.count > self.fail_at):
            self.has_failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def _opens_to_write(flags: object) -> bool:
    return isinstance(flags, int) and flags & os.O_ACCMODE != os.O_RDONLY


class CrashingFiles(CountingFiles):
    """Dies at the `crash_at`-th operation, counted from 1."""

    def __init__(
        self, crash_at: int, mode: CrashMode = "before", *, end: Callable[[], None] = die
    ) -> None:
        super().__init__()
        self.crash_at = crash_at
        self.mode = mode
        self.end = end
        self._unsynced = _Unsynced()

    def about_to(self, operation: str, path: Path) -> None:
        super().about_to(operation, path)
        is_writing = operation in ("fill", "append", "create", "remove_tree")
        if self.count == self.crash_at and not (self.mode == "torn" and is_writing):
            if self.mode == "power":
                self._unsynced.lose()
            self.end()

    @property
    def _tears_now(self) -> bool:
        return self.mode == "torn" and self.count == self.crash_at

    def fill(self, path: Path, write: Callable[[Path], None]) -> None:
        super().fill(path, write)
        self._unsynced.content(path, 0)
        self._unsynced.name(path)
        if self._tears_now:
            os.truncate(path, path.stat().st_size // 2)
            self.end()

    def append(self, path: Path, data: bytes) -> None:
        before = path.stat().st_size if path.exists() else None
        super().append(path, data[: len(data) // 2] if self._will_tear else data)
        self._unsynced.content(path, before or 0)
        if before is None:
            self._unsynced.name(path)
        if self._tears_now:
            self.end()

    def create(self, path: Path, data: bytes) -> None:
        super().create(path, data[: len(data) // 2] if self._will_tear else data)
        self._unsynced.content(path, 0)
        self._unsynced.name(path)
        if self._tears_now:
            self.end()

    @property
    def _will_tear(self) -> bool:
        return self.mode == "torn" and self.count + 1 == self.crash_at

    def cut(self, path: Path, size: int) -> None:
        tail = path.read_bytes()[size:]
        super().cut(path, size)
        self._unsynced.names.append((path.parent, lambda: _add(path, tail)))

    def sync(self, path: Path) -> None:
        super().sync(path)
        self._unsynced.contents.pop(path, None)

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._unsynced.keep_names_in(path)

    def rename(self, source: Path, target: Path) -> None:
        replaced = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        self._unsynced.renamed(source, target, replaced)

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self._unsynced.names.append((path.parent, lambda: shutil.rmtree(path, ignore_errors=True)))

    def remove_tree(self, path: Path) -> None:
        if self._will_tear:
            self.about_to("remove_tree", path)
            files = sorted(p for p in path.rglob("*") if p.is_file())
            for file in files[: -(-len(files) // 2)]:
                file.unlink()
            self.end()
        super().remove_tree(path)


class _Unsynced:
    """Contents that a power failure would take: contents by path, and names in the order in which they came to be."""

    def __init__(self) -> None:
        self.contents: dict[Path, int] = {}
        self.names: list[tuple[Path, Callable[[], object]]] = []

    def content(self, path: Path, durable_size: int) -> None:
        self.contents[path] = min(durable_size, self.contents.get(path, durable_size))

    def name(self, path: Path) -> None:
        self.names.append((path.parent, lambda: path.unlink(missing_ok=True)))

    def keep_names_in(self, directory: Path) -> None:
        self.names = [(parent, undo) for parent, undo in self.names if parent != directory]

    def renamed(self, source: Path, target: Path, replaced: bytes | None) -> None:
        for path, size in list(self.contents.items()):
            if path == source or source in path.parents:
                self.contents[target / path.relative_to(source)] = self.contents.pop(path, size)

        def undo() -> None:
            if target.exists():
                source.parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, source)
            if replaced is not None:
                target.write_bytes(replaced)

        self.names.append((target.parent, undo))

    def lose(self) -> None:
        """Bring the disk into the state that only what was synced left."""
        for path, size in self.contents.items():
            if path.is_file():
                os.truncate(path, min(size, path.stat().st_size))
        for _, undo in reversed(self.names):
            undo()


def _add(path: Path, data: bytes) -> None:
    with path.open("ab") as handle:
        handle.write(data)
