"""File layers that fail on purpose: crash before an operation, tear one, lose power, or refuse. Ship for tests.

The promise that a run survives a crash anywhere is proved by crashing it at each operation in turn.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from policies.files import FileLayer

CrashMode = Literal["before", "torn", "power"]
"""`before`: the process dies and the operation does not happen. `torn`: it dies when half of the data is
written. `power`: it dies, and whatever was not synced by then is lost too."""

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
        """What happens before an operation."""
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
    """What a power failure would take: contents by path, and names in the order in which they came to be."""

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
