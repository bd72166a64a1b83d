"""Records on disk: write-once Parquet files with typed columns, each with a marker that proves it whole.

A file exists for Pawl when its marker (`<file>.json`) exists: the marker is written last and holds the
sha256 of the file, the number of rows, a digest of the *content* (without clocks), and a summary.
Order of writing: data to a temporary name, fsync, rename, fsync of the folder; then the marker likewise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, JsonValue

from policies.errors import ArtifactError
from policies.records import Record

R = TypeVar("R", bound=Record)

VOLATILE_FIELDS = frozenset({"seconds"})
"""Fields that hold a clock: kept in files, left out of content digests, so that runs can be compared."""


class Marker(Record):
    """What is known of a finished file. Written beside it as `<file>.json`."""

    file: str
    sha256: str
    num_bytes: int
    num_rows: int
    content_digest: str
    """sha256 over the rows without volatile fields: equal for equal work."""
    summary: dict[str, JsonValue] = Field(default_factory=dict)


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then make it durable and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    fsync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably: readers see the old content or the new one, never a part."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(path, lambda temporary: _write_text(temporary, text + "\n"))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def marker_path(path: Path) -> Path:
    """Where the marker of `path` lies."""
    return path.with_name(path.name + ".json")


def read_marker(path: Path) -> Marker | None:
    """The marker of `path`, or None when the file has not been finished."""
    try:
        return Marker.model_validate_json(marker_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError(
            f"marker of {path} cannot be read: {error}. Fix: delete {marker_path(path)}; the shard is then redone"
        ) from error


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


def write_records(
    path: Path, kind: type[R], records: Sequence[R], *, summary: dict[str, JsonValue] | None = None
) -> Marker:
    """Write records of one kind as a finished Parquet file and return its marker."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = _shape(kind)
    rows = [_to_row(record.model_dump(mode="json"), kind) for record in records]
    table = pa.Table.from_pylist(rows, schema=pa.schema(shape))
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    marker = Marker(
        file=path.name,
        sha256=file_sha256(path),
        num_bytes=path.stat().st_size,
        num_rows=len(records),
        content_digest=content_digest(records),
        summary=summary or {},
    )
    write_json(marker_path(path), marker.model_dump(mode="json"))
    return marker


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read a finished file back.

    Raises:
        ArtifactError: it is missing, unfinished, changed since it was written, or of another kind.
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
    rows = pq.read_table(path).to_pylist()
    try:
        return [kind.model_validate(_from_row(row, kind)) for row in rows]
    except ValueError as error:
        raise ArtifactError(f"{path} does not hold {kind.__name__} records: {error}") from error


# --- Parquet columns from record fields ----------------------------------------------------------
# Lists, strings, numbers and nested records become typed columns; free JSON and unions of records
# become JSON text, because Parquet has no column type for "any".


def _plain(annotation: Any) -> Any:
    """Strip Annotated and Optional."""
    while True:
        origin = get_origin(annotation)
        if origin is typing.Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            options = [a for a in get_args(annotation) if a is not type(None)]
            if len(options) != 1:
                return Any
            annotation = options[0]
        else:
            return annotation


def _arrow_type(annotation: Any) -> Any:
    import pyarrow as pa

    annotation = _plain(annotation)
    simple = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    if annotation in simple:
        return simple[annotation]
    if get_origin(annotation) is Literal:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(_shape(annotation))
    if get_origin(annotation) is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    return pa.string()


def _is_json(annotation: Any) -> bool:
    annotation = _plain(annotation)
    if annotation in (bool, int, float, str) or get_origin(annotation) in (Literal, tuple):
        return False
    return not (isinstance(annotation, type) and issubclass(annotation, (Enum, BaseModel)))


def _shape(kind: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(name, _arrow_type(field.annotation)) for name, field in kind.model_fields.items()]


def _convert(value: Any, annotation: Any, *, encode: bool) -> Any:
    if _is_json(annotation):
        if encode:
            return json.dumps(value, sort_keys=True)
        return None if value is None else json.loads(value)
    if value is None:
        return None
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {
            n: _convert(value.get(n), f.annotation, encode=encode)
            for n, f in annotation.model_fields.items()
        }
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        if _plain(inner) in (int, float, str, bool):
            return value
        return [_convert(item, inner, encode=encode) for item in value]
    return value


def _to_row(value: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {
        n: _convert(value.get(n), f.annotation, encode=True) for n, f in kind.model_fields.items()
    }


def _from_row(row: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {
        n: _convert(row.get(n), f.annotation, encode=False) for n, f in kind.model_fields.items()
    }
