"""Records on disk: write-once Parquet files with typed columns, each with a marker that proves it whole.

A file exists for Pawl when its marker (`<file>.json`) exists: the marker is written last and holds the
sha256 of the file, the number of rows, a digest of the *content* (without clocks), what it was made from,
and a summary. A worker only ever writes a `Draft` on a path of its own; the driver checks it, moves it to
its place and writes the marker (`commit`). So a file by a worker that was given up is never listed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field, JsonValue

from policies.base.errors import ArtifactError
from policies.base.records import Record
from policies.storage import files
from policies.storage.checksums import is_as_written
from policies.storage.files import fsync_directory, write_atomically, write_json
from policies.storage.guarding import committing
from policies.storage.parquet import from_row, not_finite, shape_of, to_row

__all__ = [
    "SHARD_SCHEMA",
    "Draft",
    "Marker",
    "Written",
    "canonical_json",
    "commit",
    "content_digest",
    "discard",
    "file_sha256",
    "find_damage",
    "fsync_directory",
    "marker_path",
    "read_marker",
    "read_records",
    "read_rows",
    "write_atomically",
    "write_draft",
    "write_json",
    "write_records",
]

R = TypeVar("R", bound=Record)

SHARD_SCHEMA = "1"
"""Version of the record types as they lie on disk; raised when a field changes its meaning."""

VOLATILE_FIELDS = frozenset({"seconds"})
"""Fields that hold a clock: kept in files, left out of content digests, so that runs can be compared."""


class Marker(Record):
    """Facts of a finished file. Written beside it as `<file>.json`."""

    file: str
    sha256: str
    num_bytes: int
    num_rows: int
    content_digest: str
    """sha256 over the rows without volatile fields: equal for equal work."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digest of each thing that the file was made from, by name: upstream files, policies, settings, schema."""
    summary: dict[str, JsonValue] = Field(default_factory=dict)
    kind: str = Field(default="", exclude_if=lambda name: not name)
    """`kind_name` of its records. Empty: the folder says what they are, or the file is an older Pawl's."""
    seal: str = ""
    """sha256 of the rest of the marker, so that a flipped digit in it is noticed. Empty: by an older Pawl."""

    def sealed(self) -> Marker:
        """The same marker with its seal."""
        return self.model_copy(update={"seal": _seal(self)})


class Draft(Record):
    """A file that a worker wrote on a path of its own, as the worker saw it."""

    path: str
    sha256: str
    num_bytes: int
    num_rows: int
    content_digest: str
    kind: str = ""
    """`kind_name` of its records."""


class Written(Record):
    """A worker's answer: its files, not committed yet, and a summary under 1 KB of sums and counts."""

    files: tuple[Draft, ...]
    summary: dict[str, JsonValue] = Field(default_factory=dict)


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def marker_path(path: Path) -> Path:
    """Tell where the marker of `path` lies."""
    return path.with_name(path.name + ".json")


def read_marker(path: Path) -> Marker | None:
    """The marker of `path`, or None when the file has not been finished.

    Raises:
        ArtifactError: it cannot be read, or its seal is broken.
    """
    try:
        text = marker_path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        marker = Marker.model_validate_json(text)
        if marker.seal and (marker.seal != _seal(marker) or not is_as_written(text)):
            raise ValueError("its seal is broken: it changed since it was written")
        if marker.file != path.name:
            raise ValueError(f"it is the marker of {marker.file}")
    except ValueError as error:
        raise ArtifactError(
            f"marker of {path} cannot be read: {error}. Fix: delete {marker_path(path)}; the shard is then redone"
        ) from error
    return marker


def _seal(marker: Marker) -> str:
    value = marker.model_dump(mode="json", exclude={"seal"})
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_digest(records: Iterable[BaseModel]) -> str:
    """sha256 of the records' canonical JSON, one per line, without volatile fields."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(canonical_json(record).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def canonical_json(record: BaseModel) -> str:
    """One line of JSON, equal for equal records whatever their clocks."""
    return json.dumps(
        _without_clock(record.model_dump(mode="json")), sort_keys=True, separators=(",", ":")
    )


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_clock(v) for k, v in value.items() if k not in VOLATILE_FIELDS}
    if isinstance(value, list):
        return [_without_clock(v) for v in value]
    return value


def write_draft(path: Path, kind: type[R], records: Sequence[R]) -> Draft:
    """Write records of one kind to `path`, which no one else uses, durably but uncommitted.

    Raises:
        ArtifactError: a number is NaN or infinite: it would not be read back.
        StorageError: the disk refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [to_row(record.model_dump(mode="json"), kind) for record in records]
    table = pa.Table.from_pylist(rows, schema=pa.schema(shape_of(kind)))
    if (column := not_finite(table)) is not None:
        raise ArtifactError(
            f"{kind.__name__} records for {path} are refused: a number in column {column} is not finite. "
            "Fix: mend what computed it (a verifier, a judge, a preference builder)"
        )

    # In memory first: the digest is of what was meant to be written, so a file that is not all of it is noticed.
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    files.write_once(path, lambda target: files.put(target, data))
    return Draft(
        path=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        num_rows=len(records),
        content_digest=content_digest(records),
        kind=kind.kind_name,
    )


def commit(
    draft: Draft,
    target: Path,
    *,
    inputs: Mapping[str, str] | None = None,
    summary: Mapping[str, JsonValue] | None = None,
    guard: Callable[[], None] | None = None,
) -> Marker:
    """Make a draft the finished file `target`: check it, move it there, write its marker.

    `guard` is asked right before the move and again before the marker: it raises when this process may not commit. The
    run is held over both, so that a driver which is replaced meanwhile never touches a file of the next one.
    A finished file that was at `target` is replaced; its marker goes first.

    Raises:
        ArtifactError: the draft is missing, or not what the worker said.
    """
    source = Path(draft.path)
    damage = _differs(source, draft.num_bytes, draft.sha256)
    if damage is not None:
        raise ArtifactError(
            f"{source} {damage}, not what its worker reported. Fix: `pawl resume` makes it again; "
            "if it comes back, workers and driver do not see the same storage"
        )
    marker = Marker(
        file=target.name,
        sha256=draft.sha256,
        num_bytes=draft.num_bytes,
        num_rows=draft.num_rows,
        content_digest=draft.content_digest,
        inputs=dict(inputs or {}),
        summary=dict(summary or {}),
        kind=draft.kind,
    ).sealed()
    with committing(guard):
        files.remove_file(marker_path(target))
        if source != target:
            files.move(source, target)
        if guard is not None:
            guard()
        write_json(marker_path(target), marker.model_dump(mode="json"))
    return marker


def write_records(
    path: Path,
    kind: type[R],
    records: Sequence[R],
    *,
    summary: dict[str, JsonValue] | None = None,
    inputs: Mapping[str, str] | None = None,
    guard: Callable[[], None] | None = None,
) -> Marker:
    """Write records of one kind as a finished Parquet file and return its marker. For files of one writer."""
    own = f"{os.getpid()}-{secrets.token_hex(4)}"  # another driver may be at the same file
    temporary = path.with_name(f".{path.name}.{own}{files.TEMPORARY_SUFFIX}")
    draft = write_draft(temporary, kind, records)
    return commit(draft, path, inputs=inputs, summary=summary, guard=guard)


def discard(path: Path, guard: Callable[[], None] | None = None) -> None:
    """Remove a finished file; its marker goes first, so that a crash in between leaves an unfinished one."""
    with committing(guard):
        files.remove_file(marker_path(path))
        files.remove_file(path)


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a file that ought to be finished, or None: its marker, size and sha256 are checked."""
    try:
        marker = read_marker(path)
    except ArtifactError as error:
        return str(error)
    if marker is None:
        return "was never finished"
    damage = _differs(path, marker.num_bytes, marker.sha256)
    return None if damage is None else f"changed since it was written: it {damage}"


def _differs(path: Path, num_bytes: int, sha256: str) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != num_bytes:
        return f"has {size} bytes instead of {num_bytes}"
    if file_sha256(path) != sha256:
        return "has another sha256"
    return None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read a finished file back.

    Raises:
        ArtifactError: it is missing, unfinished, changed since it was written, of another kind, or holds
            numbers that are not finite.
    """
    rows = read_rows(path)
    try:
        return [kind.model_validate(from_row(row, kind)) for row in rows]
    except ValueError as error:  # pydantic's and json's errors are all of this kind
        raise ArtifactError(f"{path} does not hold {kind.__name__} records: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the columns of a finished file back, whatever its records are; free JSON is text.

    Raises:
        ArtifactError: it is missing, unfinished, changed since it was written, or holds numbers that are not finite.
    """
    import pyarrow.parquet as pq

    marker = read_marker(path)
    if marker is None or not path.is_file():
        raise ArtifactError(
            f"{path} was never finished. Fix: resume the run; unfinished files are made again"
        )
    if file_sha256(path) != marker.sha256:
        raise ArtifactError(
            f"{path} changed since it was written (sha256 differs from its marker). "
            "Fix: delete it and its marker; it is then made again"
        )
    try:
        table = pq.read_table(path)
        if (column := not_finite(table)) is not None:
            raise ValueError(f"a number in column {column} is not finite")
        return cast("list[dict[str, Any]]", table.to_pylist())
    except ValueError as error:  # pyarrow's errors are of this kind
        raise ArtifactError(f"{path} does not hold records: {error}") from error
