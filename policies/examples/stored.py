"""Examples read back by the kind that the marker of their file remembers; nobody's plug-in is imported for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import model_serializer

from policies.base.errors import ArtifactError, ConfigurationError, explain
from policies.base.records import Json
from policies.examples.kind import Example, TokenSequence, Value, plain_facts, shipped_names
from policies.storage.artifacts import read_marker, read_records, read_rows


@cache
def shipped(name: str) -> type[Example]:
    """Return the kind of this name that ships."""
    module = importlib.import_module(f"policies.examples.kinds.{name}")
    return next(
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Example) and found.kind_name == name
    )


def kind_of(named: object, owner: type) -> type[Example]:
    """Return the kind that a loss or a builder names, by its class or by the name of one that ships.

    Raises:
        ConfigurationError: it is neither, or a class without a name.
    """
    if isinstance(named, str) and named in shipped_names():
        return shipped(named)
    if isinstance(named, type) and issubclass(named, Example) and named.kind_name:
        return named
    raise ConfigurationError(
        explain(
            "a loss or a preference builder names the kind of its examples by a class with a kind_name",
            value=getattr(named, "__name__", named),
            where=f"kind of {owner.__name__}",
            fix=f"name a subclass of Example, or one of {', '.join(sorted(shipped_names()))}",
        )
    )


class StoredExample(Example):
    """An example as its file holds it, of a kind that this process does not know."""

    columns: dict[str, Json]

    @model_serializer
    def _as_stored(self) -> dict[str, Any]:
        return self.columns  # so that its content digest is the one that its marker has

    def sides(self) -> dict[str, TokenSequence]:
        found: dict[str, TokenSequence] = {}
        for name, value in self.columns.items():
            if is_sequence(value):
                found[name] = TokenSequence.model_validate(value)
            elif isinstance(value, list) and value and is_sequence(value[0]):
                every = enumerate(map(TokenSequence.model_validate, value), start=1)
                found |= {f"{name}_{i}": sequence for i, sequence in every}
        return found

    def row(self) -> dict[str, Value]:
        return plain_facts(cast("dict[str, Any]", self.columns))


def is_sequence(value: object) -> bool:
    """Tell whether a value of a row is a token sequence, or the part of one that names its trajectory."""
    return isinstance(value, Mapping) and "trajectory_id" in value


def read_examples(path: Path) -> list[Example]:
    """Read the examples of a finished file; those of a plug-in's kind come back as `StoredExample`.

    Raises:
        ArtifactError: it is missing, unfinished, damaged, or holds something else.
    """
    marker = read_marker(path)
    name = "" if marker is None else marker.kind
    if not name:
        return [*read_records(path, _by_columns(path))]
    if name in shipped_names():
        return [*read_records(path, shipped(name))]
    made = _unknown(name)
    try:
        return [made.model_validate(_own(row)) for row in read_rows(path)]
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path} does not hold {name} examples: {error}") from error


@cache
def _unknown(name: str) -> type[StoredExample]:
    return type(name, (StoredExample,), {"__module__": __name__, "__doc__": f"An example: {name}."})


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "prompt_id", "weight")} | {"columns": dict(row)}


def _by_columns(path: Path) -> type[Example]:
    """Return the kind of a file whose marker does not say it: an older Pawl wrote these three alone.

    Raises:
        ArtifactError: the file is not Parquet.
    """
    import pyarrow.parquet as pq

    try:
        names: Sequence[str] = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a Parquet file: {error}") from error
    if "chosen" in names:
        return shipped("pair")
    return shipped("unpaired" if "desirable" in names else "supervised")
