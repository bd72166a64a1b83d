"""Parquet columns from record fields, and rows from records, for every record type by one rule.

Lists, strings, numbers and nested records become typed columns; free JSON and unions of records
become JSON text, because Parquet has no column type for "any".
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


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
        return pa.struct(shape_of(annotation))
    if get_origin(annotation) is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    return pa.string()


def _is_json(annotation: Any) -> bool:
    annotation = _plain(annotation)
    if annotation in (bool, int, float, str) or get_origin(annotation) in (Literal, tuple):
        return False
    return not (isinstance(annotation, type) and issubclass(annotation, (Enum, BaseModel)))


def json_fields(kind: type[BaseModel]) -> list[str]:
    """Fields that lie in a file as JSON text, also inside of records: without the type no one reads them back."""
    return [
        name for name, field in kind.model_fields.items() if _holds_json(_plain(field.annotation))
    ]


def _holds_json(annotation: Any) -> bool:
    if get_origin(annotation) is tuple:
        return _holds_json(_plain(get_args(annotation)[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return bool(json_fields(annotation))
    return _is_json(annotation)


def shape_of(kind: type[BaseModel]) -> list[tuple[str, Any]]:
    """Name and Arrow type of each column of a record type."""
    return [(name, _arrow_type(field.annotation)) for name, field in kind.model_fields.items()]


_Convert = Callable[[Any], Any]


def to_row(value: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """A record's dump as a row of the table."""
    return _converted(value, _plan(kind, encode=True))


def from_row(row: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """A row of the table as what the record is validated from."""
    return _converted(row, _plan(kind, encode=False))


def _converted(value: dict[str, Any], plan: _Plan) -> dict[str, Any]:
    return {
        name: value.get(name) if convert is None else convert(value.get(name))
        for name, convert in plan
    }


_Plan = tuple[tuple[str, _Convert | None], ...]
"""What is done to each field of a record type; None leaves the value as it is."""


@cache
def _plan(kind: type[BaseModel], *, encode: bool) -> _Plan:
    """Looked up once per record type: asking the annotations for every value took half of a round's collect phase."""
    return tuple(
        (name, _converter(field.annotation, encode=encode))
        for name, field in kind.model_fields.items()
    )


def _converter(annotation: Any, *, encode: bool) -> _Convert | None:
    if _is_json(annotation):
        return _to_json if encode else _from_json
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        plan = _plan(annotation, encode=encode)
        return lambda value: None if value is None else _converted(value, plan)
    if get_origin(annotation) is tuple:
        each = _converter(get_args(annotation)[0], encode=encode)
        if each is not None:
            return lambda value: None if value is None else [each(item) for item in value]
    return None


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _from_json(value: str | None) -> Any:
    return None if value is None else json.loads(value)


def not_finite(table: Any) -> str | None:
    """The first column with a number that is NaN or infinite, or None. Looks into lists and nested records."""
    import pyarrow as pa

    for name, column in zip(table.schema.names, table.columns, strict=True):
        for chunk in column.chunks:
            if (found := _not_finite(chunk, name, pa)) is not None:
                return found
    return None


def _not_finite(array: Any, name: str, pa: Any) -> str | None:
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_floating(kind):
        whole = pc.all(pc.is_finite(array), skip_nulls=True).as_py()
        return None if whole is None or whole else name
    if pa.types.is_list(kind):
        return _not_finite(array.flatten(), name, pa)
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            inner = f"{name}.{kind.field(index).name}"
            if (found := _not_finite(array.field(index), inner, pa)) is not None:
                return found
    return None
