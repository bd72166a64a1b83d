"""The place for damaged files and poison items: out of the way, kept, with the reason beside them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.runs.folder import RunFolder
from policies.storage import files
from policies.storage.artifacts import file_sha256, marker_path
from policies.storage.checksums import with_seal
from policies.storage.guarding import committing

MARKER = "its marker"
"""Stands for the marker beside a file among the names of what was set aside."""


class Quarantine:
    """`<run>/quarantine/`: the run's own folders inside, and beside each file `<file>.reason.json`.

    `guard` raises when this process may not change the run (any more).
    """

    def __init__(self, folder: RunFolder, guard: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.guard = guard

    def set_aside(self, path: Path, why: str) -> Path:
        """Move a damaged file (or folder) of the run, and its marker, out of the way; returns where it is now.

        The reason is written first and the marker goes before the file: a crash in between leaves an unfinished
        file, which is made again.
        """
        with committing(self.guard):
            return self._set_aside(path, why)

    def _set_aside(self, path: Path, why: str) -> Path:
        target = self._free(path)
        digests = _digests(path)
        self._write_reason(target, {"file": self._name(path), "why": why, "sha256": digests})
        marker = marker_path(path)
        if marker.exists():
            files.move(marker, marker_path(target))
            files.fsync_directory(marker.parent)
        if path.exists():
            files.move(path, target)
            files.fsync_directory(path.parent)
        return target

    def note(self, name: str, facts: dict[str, object]) -> Path:
        """Record an item that is left out from now on, e.g. a prompt that kills its worker."""
        path = self.folder.quarantine / name
        with committing(self.guard):
            self._write_reason(path, facts)
        return path

    def _name(self, path: Path) -> str:
        try:
            return str(path.relative_to(self.folder.path))
        except ValueError:
            return str(path)

    def _free(self, path: Path) -> Path:
        try:
            inside = path.relative_to(self.folder.path)
        except ValueError:
            inside = Path(path.name)
        target = self.folder.quarantine / inside
        number = 1
        while target.exists() or marker_path(target).exists():
            number += 1
            target = self.folder.quarantine / inside.with_name(f"{inside.name}.{number}")
        return target

    def _write_reason(self, target: Path, facts: dict[str, object]) -> None:
        reason = target.with_name(target.name + ".reason.json")
        files.write_json(reason, with_seal({**facts, "at": datetime.now(UTC).isoformat()}))


def _digests(path: Path) -> dict[str, str]:
    """sha256 of what is set aside, by the path inside it: for whoever looks at it later."""
    inside = [path] if path.is_file() else sorted(path.rglob("*"))
    found = {p.relative_to(path).as_posix(): file_sha256(p) for p in inside if p.is_file()}
    marker = marker_path(path)
    return found | ({MARKER: file_sha256(marker)} if marker.is_file() else {})
