"""Stand-ins for plug-ins: their settings as plain values, in a process that never imports their classes.

Another process imports the plug-in, checks its settings and describes it (`PlugInFacts`). A stand-in is a subclass of
the nearest class of ours that the plug-in inherits, with the attributes that were told; it pickles as the plug-in.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, cast

from pydantic import BaseModel, Field, JsonValue, create_model

from policies.base.component import OURS, Component, create, load_object, reference_to, watched_by
from policies.base.component_walk import components_in, stated_requirements
from policies.base.errors import ConfigurationError, explain
from policies.base.records import Record
from policies.base.requirements import NOTHING, Requirements
from policies.plug_ins.plugin_code import PlugInCode

_PLAIN = (str, int, float, bool, type(None))


class PlugInFacts(Record):
    """A plug-in with its settings, as told by the process that imported it.

    Example: `PlugInFacts(family="loss", given={"type": "./a.py:Mine"}, reference="/x/a.py:Mine", module="a",
    name="Mine", base="policies.objectives.loss:PairLoss", values={"type": "./a.py:Mine", "beta": 0.1})`.
    """

    family: str
    given: dict[str, JsonValue]
    """The settings as the config has them."""
    reference: str
    module: str
    name: str
    base: str
    """The nearest class of ours that it inherits."""
    values: dict[str, JsonValue]
    """The settings with all defaults."""
    inherited: tuple[str, ...] = ()
    """Those of `values` that mean what they mean in `base`."""
    attributes: dict[str, JsonValue] = Field(default_factory=dict)
    """What it says of itself in attributes that `base` has, too."""
    config_attributes: dict[str, JsonValue] = Field(default_factory=dict)
    """The same for properties of its settings."""
    requirements: Requirements = NOTHING
    """What it requires with these settings, and what components do that only it knows of."""


def is_plug_in(config: Component.Config) -> bool:
    """Tell whether the component of these settings is not one of ours, known by its class or by a stand-in."""
    owner = type(config).component
    return bool(owner.stands_for) or owner.__module__.partition(".")[0] not in OURS


def is_stand_in(config: Component.Config) -> bool:
    """Tell whether this process knows the component by its description only."""
    return bool(type(config).component.stands_for)


def describe(family: str, given: Mapping[str, Any], config: Component.Config) -> PlugInFacts:
    """Tell what another process needs to know of a plug-in that was imported here."""
    owner = type(config).component
    # Its settings may inherit those of a class further up than the nearest: `class Config(Judge.Config)` in a
    # subclass of `ScoringJudge`.
    base = next(
        c
        for c in owner.__mro__
        if c.__module__.partition(".")[0] in OURS
        and issubclass(c, Component)
        and c.Config in type(config).__mro__
    )
    own = {
        name
        for c in type(config).__mro__[: type(config).__mro__.index(base.Config)]
        for name in inspect.get_annotations(c)
    }
    values = config.model_dump(mode="json")
    instance = create(config) if family == "loss" else None  # its properties are asked for by name
    inherited = tuple(n for n in values if n in base.Config.model_fields and n not in own)
    return PlugInFacts(
        family=family,
        given=dict(given),
        reference=named if ":" in (named := str(given.get("type"))) else reference_to(owner),
        module=owner.__module__,
        name=owner.__name__,
        base=f"{base.__module__}:{base.__qualname__}",
        values=values,
        inherited=inherited,
        attributes=dict(_attributes(owner, base, instance)),
        config_attributes=dict(_attributes(type(config), base.Config, config)),
        requirements=_requirements(config, inherited),
    )


def _requirements(config: Component.Config, inherited: Sequence[str]) -> Requirements:
    """Its own, and those of components in settings that `base` does not know: for who describes it they are values."""
    found = stated_requirements(config)
    for place, inner in components_in(config):
        if place and place[0] not in inherited:
            found += stated_requirements(inner).below(".".join(map(str, place)))
    return found


def _attributes(owner: type, base: type, instance: object | None) -> Iterator[tuple[str, Any]]:
    """Public attributes that `base` declares and `owner` may have changed, where their values are plain."""
    fields = base.model_fields if issubclass(base, BaseModel) else {}
    known = {n for c in base.__mro__ if c.__module__.partition(".")[0] in OURS for n in vars(c)}
    for name in sorted(known):
        if name.startswith(("_", "model_")) or name in fields or name == "stands_for":
            continue
        found = inspect.getattr_static(owner, name, None)
        if isinstance(found, property):
            if instance is None:
                continue
            found = getattr(instance, name, None)
        if isinstance(found, _PLAIN) or (
            isinstance(found, (tuple, list)) and all(isinstance(v, _PLAIN) for v in found)
        ):
            yield name, list(found) if isinstance(found, tuple) else found


class StandIns:
    """Facts that were told of the plug-ins of one config; no plug-in is loaded while it watches."""

    def __init__(
        self, facts: Sequence[PlugInFacts], code: Mapping[str, PlugInCode] | None = None
    ) -> None:
        """Take what was told.

        Args:
            facts: of each plug-in, for each of its settings.
            code: what the plug-ins are made of, by what the config calls them.
        """
        self.facts = tuple(facts)
        self.code = dict(code or {})
        self._made: dict[str, Component.Config] = {}
        self._classes: dict[str, type[Component.Config]] = {}
        self._told = {_key(f.family, given): f for f in facts for given in (f.given, f.values)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StandIns) and other.facts == self.facts

    __hash__ = None  # type: ignore[assignment] # compared, never a key

    def watching(self) -> AbstractContextManager[None]:
        """Let settings of these plug-ins become stand-ins, and refuse to import any plug-in."""
        return watched_by(self)

    def known(self, family: str, value: dict[str, Any]) -> Component.Config | None:
        key = _key(family, value)
        told = self._told.get(key)
        if told is None:
            return None
        if key not in self._made:
            with self.watching():
                self._made[key] = self._stand_in(told)
        return self._made[key]

    def parsed(self, family: str, value: dict[str, Any], config: Component.Config) -> None:
        """Nothing to note: it is one of ours."""

    def loading(self, reference: str) -> AbstractContextManager[None]:
        _refuse(reference)

    def _stand_in(self, facts: PlugInFacts) -> Component.Config:
        base: type[Component] = load_ours(facts.base)
        kept = {n: f for n, f in base.Config.model_fields.items() if n in facts.inherited}
        checked = create_model(
            "Checked", **cast(Any, {n: (f.annotation, f) for n, f in kept.items()})
        )
        given = checked.model_validate({n: facts.values[n] for n in kept})
        values = {n: getattr(given, n) for n in kept}
        values |= {n: v for n, v in facts.values.items() if n not in kept}
        key = facts.model_dump_json(
            include={"reference", "base", "attributes", "config_attributes", "requirements"}
        )
        key += json.dumps(sorted(facts.values))
        if key not in self._classes:
            self._classes[key] = _config_class(facts, base)
        return self._classes[key].model_construct(**values)


def _config_class(facts: PlugInFacts, base: type[Component]) -> type[Component.Config]:
    """Settings with the fields of the plug-in's; those that `base` does not check hold any plain value."""
    fields: dict[str, Any] = {}
    for name in facts.values.keys() | base.Config.model_fields.keys():
        if name not in facts.values:
            left_out = base.Config.model_fields[name]
            if left_out.exclude_if is None:
                fields[name] = (Any, Field(default=None, exclude=True))
        elif name not in facts.inherited:
            fields[name] = (Any, ...)
    made = create_model(
        f"{facts.name}.Config",
        __base__=base.Config,
        __module__=__name__,
        **fields,
    )
    for name, value in facts.config_attributes.items():
        setattr(made, name, tuple(value) if isinstance(value, list) else value)
    told_requirements = facts.requirements
    setattr(made, "requires", lambda self: told_requirements)  # noqa: B010 - likewise
    setattr(made, "__reduce__", Component.Config.__reduce__)  # noqa: B010 - a method may not be assigned
    told = {n: tuple(v) if isinstance(v, list) else v for n, v in facts.attributes.items()}
    body = {
        **told,
        "Config": made,
        "stands_for": facts.reference,
        "__module__": facts.module,
        "__qualname__": facts.name,
        "__doc__": f"Stands for {facts.reference}.",
    }
    type(facts.name, (base,), body)
    return cast("type[Component.Config]", made)


def load_ours(reference: str) -> Any:
    """Return a class of ours by the name that a description gives it.

    Raises:
        ConfigurationError: it names something else.
    """
    if reference.partition(".")[0] not in OURS:
        _refuse(reference)
    with watched_by(None):
        return load_object(reference)


def _refuse(reference: str) -> NoReturn:
    raise ConfigurationError(
        explain(
            "this process imports no plug-ins, and nobody has described this one",
            value=reference,
            where="the config that names it",
            fix="load the config by `orchestrator.config.files.load_config`",
        )
    )


def _key(family: str, value: Mapping[str, Any]) -> str:
    return f"{family} {json.dumps(value, sort_keys=True, default=str)}"
