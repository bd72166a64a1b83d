"""Every number that a config may hold has a finite lower and upper bound, in every section and every component."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError

from orchestrator.config.run_config import RunConfig
from policies.base.component import FamilyField

Bounds = tuple[list[float], list[float]]


def _bounds(metadata: list[Any]) -> Bounds:
    flat = [m for each in metadata for m in (each, *(getattr(each, "metadata", None) or ()))]
    low: list[object] = [m.ge for m in flat if isinstance(m, annotated_types.Ge)]
    low += [m.gt for m in flat if isinstance(m, annotated_types.Gt)]
    high: list[object] = [m.le for m in flat if isinstance(m, annotated_types.Le)]
    high += [m.lt for m in flat if isinstance(m, annotated_types.Lt)]
    return [float(str(n)) for n in low], [float(str(n)) for n in high]


def _numbers(
    annotation: Any, metadata: list[Any], at: str, seen: set[type[BaseModel]]
) -> Iterator[tuple[str, Bounds]]:
    while get_origin(annotation) is Annotated:
        metadata = [*metadata, *get_args(annotation)[1:]]
        annotation = get_args(annotation)[0]
    family = next((m.family for m in metadata if isinstance(m, FamilyField)), None)
    if family is not None:
        for name in family.members():
            yield from _fields(family.resolve(name).Config, f"{family.name} {name}", seen)
    elif get_origin(annotation) in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _numbers(option, metadata, at, seen)
    elif get_origin(annotation) in (tuple, list, dict):
        for inner in get_args(annotation):
            yield from _numbers(inner, [], f"{at}[]", seen)
    elif annotation in (int, float):
        yield at, _bounds(metadata)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _fields(annotation, at, seen)


def _fields(
    model: type[BaseModel], at: str, seen: set[type[BaseModel]]
) -> Iterator[tuple[str, Bounds]]:
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield from _numbers(field.annotation, list(field.metadata), f"{at}.{name}", seen)


NUMBERS = dict(_fields(RunConfig, "config", set()))


def test_the_walk_reaches_numbers_of_sections_lists_unions_and_components() -> None:
    assert {
        "config.rounds",
        "config.retention.policies",
        "config.rollout.resources.custom[]",
        "loss dpo.beta",
        "tool python.sandbox.memory_mb",
        "verifier callable.score_range[]",
    } <= NUMBERS.keys()
    assert len(NUMBERS) > 250


def test_every_number_of_a_config_has_a_finite_lower_and_upper_bound() -> None:
    for name, (low, high) in NUMBERS.items():
        assert low, f"{name} has no lower bound: give one of policies.base.bounds"
        assert high, f"{name} has no upper bound: give one of policies.base.bounds"
        assert all(map(math.isfinite, (*low, *high))), name
        assert max(low) < min(high), name
        assert min(high) < 1e16 or min(high) == float(2**63 - 1), name


@pytest.mark.parametrize("value", [1e308, 1e30, 10**4000, math.inf, -math.inf, math.nan])
def test_a_number_beyond_the_bounds_is_refused_by_the_section_that_holds_it(value: float) -> None:
    section = type(RunConfig.model_fields["limits"].get_default(call_default_factory=True))
    for name in section.model_fields:
        with pytest.raises(ValidationError):
            section.model_validate({name: value})
