"""Components: a class with a nested `Config`, found by the `type` key of a config, in one file each.

`type: math_answer` under `verifiers:` means `workers/verify/verifiers/math_answer.py`. There is no
registry to edit. A user's own component is `package.module:Class`, `./file.py:name`, or an installed
entry point of the family's group. Importing a component's module must import nothing heavy.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from types import ModuleType
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from policies.base.errors import ConfigurationError
from policies.base.module_loading import USER_MODULE, load_module
from policies.base.module_loading import import_from_folder_of as import_from_folder_of
from policies.base.requirements import Requirements
from policies.base.settings import Settings as Settings

C = TypeVar("C", bound="Component")


@cache
def _installed() -> EntryPoints:
    """Entry points of all installed packages: found once, because a config asks ten times and it takes 50 ms."""
    return cast(EntryPoints, entry_points())  # before 3.12 another type with the same `select`


@cache
def installed_points() -> dict[str, str]:
    """Names of all installed components that are not ours, each with the reference that loads it."""
    groups = [group for group in _installed().groups if group.startswith("pawl.")]
    return {p.name: p.value for group in groups for p in _installed().select(group=group)}


MAX_SAID = 1000
"""Characters of a foreign error that are shown."""
OURS = ("pawl", "policies", "workers", "orchestrator")
"""Top-level packages whose classes are not plug-ins."""


_USUAL_NAMES = {"api_key_env": "secrets", "function": "code", "prompt_file": "files"}


class Component:
    """Base of everything that a config names by `type`."""

    stands_for: ClassVar[str] = ""
    """In a process that never imports plug-ins: the reference of the class that this one describes."""

    class Config(Settings):
        """Settings of one component."""

        component: ClassVar[type[Component]]
        type: str
        """Name of the component: a file of the family's folder, `package.module:Class` or `./file.py:name`."""

        def requires(self) -> Requirements:
            """Say what the component needs where it runs, besides what components in its settings need.

            Asked before anything of it is made, so it imports nothing heavy and opens nothing. Add to what is usual:
            `return super().requires() + Requirements(...)`.
            """
            return type(self).component.usual_requirements(self)

        def __reduce__(self) -> tuple[Any, ...]:
            # A class from a user's file has no module that another process could import by name:
            # settings travel as the reference of their component and plain JSON.
            return _rebuild, (reference_to(type(self).component), self.model_dump(mode="json"))

    @classmethod
    def usual_requirements(cls, config: Component.Config) -> Requirements:
        """Say what settings of this kind need where their own class does not say, by the names that we use ourselves.

        `api_key_env` names a secret, `function` a function of a user's, `prompt_file` a file that is judged by.
        """
        told = {to: dict(config).get(name) for name, to in _USUAL_NAMES.items()}
        given = {to: (v,) for to, v in told.items() if isinstance(v, str) and v}
        return Requirements.model_validate(given)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" not in cls.__dict__:
            base = cast(Any, cls.Config)
            own = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config"}
            own["__doc__"] = base.__doc__
            setattr(cls, "Config", type("Config", (base,), own))  # noqa: B010 - a class may not be assigned
        cls.Config.component = cls


class PlugInWatch(Protocol):
    """Deals with each plug-in in a process that keeps them out, or describes them for such a one."""

    def known(self, family: str, value: dict[str, Any]) -> Component.Config | None:
        """The settings that stand for `value` here; None to load the component."""

    def parsed(self, family: str, value: dict[str, Any], config: Component.Config) -> None:
        """Take note that `value` became `config`."""

    def loading(self, reference: str) -> AbstractContextManager[None]:
        """Surround the import of the module of `reference`; may refuse it by raising."""


WATCH: ContextVar[PlugInWatch | None] = ContextVar("plug_in_watch", default=None)


@contextmanager
def watched_by(watch: PlugInWatch | None) -> Iterator[None]:
    """Let `watch` see every plug-in whose settings are read, or whose module is imported, meanwhile; None: nobody."""
    token = WATCH.set(watch)
    try:
        yield
    finally:
        WATCH.reset(token)


class ComponentConfigError(ValueError):
    """A component's own settings are wrong; carries pydantic's errors so that the full path can be shown."""

    def __init__(self, owner: type[Component], error: ValidationError) -> None:
        super().__init__(str(error))
        self.owner = owner
        self.error = error


def _load_watched(module_name: str, reference: str) -> ModuleType:
    watch = WATCH.get()
    try:
        with nullcontext() if watch is None else watch.loading(reference):
            return load_module(module_name)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        # Whatever a user's module does at import is reported, not propagated; `sys.exit()` too.
        raise ConfigurationError(
            f"cannot import {module_name!r} of {reference!r}: {_said(error)}. "
            "Fix: correct the module, or install what it needs"
        ) from error


def _said(error: BaseException) -> str:
    """Name and text of what foreign code raised: bounded, and such that any file can carry it."""
    try:
        text = str(error)
    except Exception as unreadable:  # its own __str__ is foreign code, too
        text = f"(its text cannot be had: {type(unreadable).__name__})"
    text = text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]} [...]"
    return f"{type(error).__name__}: {text}".encode("utf-8", "replace").decode("utf-8")


def load_object(reference: str) -> Any:
    """Return the object named by `package.module:name` or `path/file.py:name`.

    Raises:
        ConfigurationError: the module or file cannot be imported, or has no such name.
    """
    module_name, _, attribute = reference.rpartition(":")
    module = _load_watched(module_name, reference)
    if not hasattr(module, attribute):
        here = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigurationError(
            f"{module_name!r} has no {attribute!r} (in {reference!r}). Fix: name one that it has"
            + (f", e.g. {', '.join(here[:5])}" if here else "")
        )
    return getattr(module, attribute)


def reference_to(component: type[Component]) -> str:
    """A reference that `load_object` resolves to `component` in any process that sees the same files."""
    if component.stands_for:
        return component.stands_for
    module = sys.modules[component.__module__]
    home = (
        str(module.__file__)
        if component.__module__.startswith(USER_MODULE)
        else component.__module__
    )
    return f"{home}:{component.__qualname__}"


def _rebuild(reference: str, values: dict[str, Any]) -> Component.Config:
    owner: type[Component] = load_object(reference)
    return owner.Config.model_validate(values)


class Family(Generic[C]):
    """All components of one kind: where they live, what they inherit, how a plain function is wrapped."""

    def __init__(
        self,
        name: str,
        *,
        package: str,
        base: type[C],
        wrap_function: Callable[[str], dict[str, Any]] | None = None,
    ) -> None:
        """Describe a family.

        Args:
            name: singular, as messages say it, e.g. `verifier`; the entry point group is `pawl.<name>s`.
            package: folder whose files are the shipped members.
            base: class that every member inherits.
            wrap_function: config for a plain function given as a reference, where the family takes one.
        """
        self.name = name
        self.package = package
        self.base = base
        self._wrap_function = wrap_function

    @property
    def group(self) -> str:
        return f"pawl.{self.name.replace(' ', '_')}s"

    def members(self) -> dict[str, str]:
        """Names of the shipped members and the installed ones, each with the reference to load it."""
        package = importlib.import_module(self.package)
        names = {m.name: f"{self.package}.{m.name}" for m in pkgutil.iter_modules(package.__path__)}
        names.update({point.name: point.value for point in _installed().select(group=self.group)})
        return dict(sorted(names.items()))

    def is_foreign(self, name: str) -> bool:
        """Tell whether the member `name` was installed by another package."""
        return not self.members()[name].startswith(f"{self.package}.")

    def resolve(self, name: str) -> type[C]:
        """Return the component class called `name`.

        Raises:
            ConfigurationError: there is none; the message lists the known names.
        """
        if ":" in name:
            found = load_object(name)
            return self._checked(found, name)
        members = self.members()
        if name not in members:
            close = difflib.get_close_matches(name, members, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(
                f"unknown {self.name} {name!r}{hint} Known: {', '.join(members)}. Your "
                "own: 'package.module:Class' or './file.py:name'."
            )
        reference = members[name]
        if ":" in reference:
            return self._checked(load_object(reference), name)
        if reference.startswith(f"{self.package}."):
            module = importlib.import_module(reference)
        else:
            module = _load_watched(reference, f"{reference}:{name}")
        for candidate in vars(module).values():
            if (
                inspect.isclass(candidate)
                and issubclass(candidate, self.base)
                and candidate.__module__ == module.__name__
            ):
                return candidate
        raise ConfigurationError(
            f"{reference} defines no {self.name} (a subclass of {self.base.__name__})"
        )

    def _checked(self, found: Any, name: str) -> type[C]:
        if inspect.isclass(found) and issubclass(found, self.base):
            shared = self.base.Config.model_fields.keys() - Component.Config.model_fields.keys()
            if shared - found.Config.model_fields.keys():
                raise ConfigurationError(
                    f"the settings of {name!r} must inherit {self.base.__name__}.Config, which every {self.name} has. "
                    f"Fix: class Config({self.base.__name__}.Config)"
                )
            return found
        raise ConfigurationError(
            f"{name!r} is not a {self.name}: it must inherit {self.base.__name__}"
        )

    def parse(self, value: Any) -> Component.Config:
        """Turn `{type: ..., ...}`, or a bare name, into the settings object of the component it names."""
        if isinstance(value, Component.Config):
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            raise ValueError(
                f"a {self.name} is written {{type: NAME, ...}}; known: {', '.join(self.members())}"
            )
        watch = WATCH.get()
        if watch is not None and (known := watch.known(self.name, value)) is not None:
            return known
        given, name = value, value["type"]
        if ":" in name and self._wrap_function is not None:
            found = load_object(name)
            if not inspect.isclass(found):
                value = {**value, **self._wrap_function(name)}
                name = value["type"]
        owner = self.resolve(name)
        try:
            config = owner.Config.model_validate(value)
        except ValidationError as error:
            raise ComponentConfigError(owner, error) from error
        if watch is not None:
            watch.parsed(self.name, given, config)
        return config

    def field(self) -> FamilyField:
        """Annotation for a config field: `engine: Annotated[Engine.Config, ENGINES.field()]`."""
        return FamilyField(self)


class FamilyField:
    """Makes pydantic parse, dump and describe a field that holds the settings of any family member."""

    def __init__(self, family: Family[Any]) -> None:
        self.family = family

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(_dump)
        return core_schema.no_info_plain_validator_function(self.family.parse, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        options: list[JsonSchemaValue] = []
        for name in (n for n in self.family.members() if not self.family.is_foreign(n)):
            described = self.family.resolve(name).Config.model_json_schema()
            described.setdefault("properties", {})["type"] = {"const": name}
            described["title"] = f"{self.family.name} {name}"
            options.append(described)
        return {"anyOf": [{"type": "string"}, *options]}


def _dump(config: Component.Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def create(config: Component.Config, **runtime: Any) -> Any:
    """Build the component that `config` describes, handing it run-time objects by keyword.

    Where only a stand-in is known, the class that it stands for is imported: for worker code alone.
    """
    if type(config).component.stands_for:
        config = _rebuild(reference_to(type(config).component), config.model_dump(mode="json"))
    owner = cast(Any, type(config).component)
    return owner(config, **runtime)
