"""Finds the components in settings, and adds up what they require."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from policies.base.component import Component
from policies.base.errors import ConfigurationError, boundary, explain
from policies.base.requirements import Requirements

Place = tuple[str | int, ...]
"""Keys and indices that lead to a setting: `("judges", 0, "backend")`."""


def components_in(value: object, place: Place = ()) -> Iterator[tuple[Place, Component.Config]]:
    """Every component in settings with its place, each before those in its own settings."""
    if isinstance(value, Component.Config):
        yield place, value
    inner: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, BaseModel):
        inner = ((name, vars(value).get(name)) for name in type(value).model_fields)
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    elif isinstance(value, dict):
        inner = value.items()
    for name, each in inner:
        yield from components_in(each, (*place, name))


def stated_requirements(config: Component.Config) -> Requirements:
    """The word of one component, without those in its settings.

    Raises:
        ConfigurationError: its `requires` fails, or returns something else.
    """
    where = f"{type(config).component.__name__}.Config.requires"
    with boundary(ConfigurationError, f"{where} failed"):
        found: object = config.requires()
    if not isinstance(found, Requirements):
        raise ConfigurationError(
            explain(
                f"{where} must return Requirements",
                value=type(found).__name__,
                where=f"the component {config.type}",
                fix="return super().requires() + policies.base.requirements.Requirements(...)",
            )
        )
    return found


def requirements_of(config: Component.Config) -> Requirements:
    """The requirements of a component together with those of every component in its settings."""
    found = stated_requirements(config)
    for place, inner in components_in(config):
        if place:
            found += stated_requirements(inner).below(".".join(map(str, place)))
    return found


def named_secrets(config: Component.Config) -> list[str]:
    """Variables with secrets that a component requires and that its settings name: the others are not given to it.

    So whoever reads the config sees every secret that leaves the driver, and no plug-in takes one by its code alone.
    """
    named = set(_texts(config.model_dump(mode="json")))
    return [name for name in requirements_of(config).secrets if name in named]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _texts(each)
