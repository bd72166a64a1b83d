"""Say everything that is wrong with a config: one line per problem, with the path, the line and the remedy.

    training.loss.betta: unknown key; did you mean 'beta'? (got 0.2) Set in quickstart.yaml:12. Fix: rename it

Values of keys that look like secrets are never shown.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from orchestrator.config.strict_yaml import KeyPath
from policies.base.bounds import MAX_WHOLE
from policies.base.component import ComponentConfigError, FamilyField
from policies.base.errors import ConfigurationError

Origins = dict[KeyPath, str]
"""Where each value was set: `Set in quickstart.yaml:12`, or the override."""

_SECRET = re.compile(r"key|token|password|passwd|secret|credential", re.IGNORECASE)
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]*@")
_NOT_GIVEN = object()
_MAX_VALUE = 80

_LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
"""How the bound that a number broke is said as a remedy, by the name that pydantic gives it."""
_FIXES = {
    "literal_error": "choose one of them",
    "enum": "choose one of them",
    "int_from_float": "write a whole number",
    "int_parsing_size": "write a smaller one",
    "string_type": "put the value in quotes",
    "finite_number": "write a finite number",
}
_MUST_BE = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": f"must be a whole number of at most {MAX_WHOLE}",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    "model_type": "must be a section of `key: value` lines",
    "model_attributes_type": "must be a section of `key: value` lines",
    "dict_type": "must be a section of `key: value` lines",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    path: KeyPath
    what: str
    value: Any = _NOT_GIVEN
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for another process."""
        told: dict[str, Any] = {"path": list(self.path), "what": self.what, "fix": self.fix}
        if self.value is not _NOT_GIVEN:
            told["value"] = to_jsonable_python(self.value, fallback=str, inf_nan_mode="strings")
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Problem:
        """Return what `to_json` wrote."""
        value = told.get("value", _NOT_GIVEN)
        return cls(tuple(told["path"]), str(told["what"]), value, str(told["fix"]))


def configuration_error(problems: list[Problem], origins: Origins) -> ConfigurationError:
    """One error with a line for every problem, in the order of the file."""
    lines = [format_problem(p, origins) for p in problems]
    return ConfigurationError("\n".join(dict.fromkeys(lines)))


def format_problem(problem: Problem, origins: Origins) -> str:
    """`path: what (got value) Set in file:line. Fix: what to do`."""
    path, what = problem.path, problem.what.strip().rstrip(".")
    parts = [f"{'.'.join(str(p) for p in path)}: {what}" if path else what]
    if problem.value is not _NOT_GIVEN:
        parts.append(f"(got {show_value(path, problem.value)})")
    origin = _origin(path, origins) if path else _origin_of_text(what, origins)
    ends = "." if parts[-1][-1] not in "?.!)" and (origin or problem.fix) else ""
    text = " ".join(parts) + ends
    text += f" {origin}." if origin else ""
    text += f" Fix: {problem.fix}" if problem.fix and "Fix:" not in what else ""
    return text


def show_value(path: KeyPath, value: Any) -> str:
    """A value for a message: short, and hidden when its key looks like a secret's."""
    if isinstance(value, str) and any(_SECRET.search(str(p)) for p in path[-2:]):
        return "a value that is not shown"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    text = _CREDENTIALS.sub("://***@", text)
    if isinstance(value, (dict, list)) and _SECRET.search(text):
        return (
            "a section that is not shown" if isinstance(value, dict) else "a list that is not shown"
        )
    if len(text) <= _MAX_VALUE:
        return text
    half = (_MAX_VALUE - 3) // 2  # the end of a path says more than its middle
    return f"{text[:half]}...{text[-half:]}"


def _origin(path: KeyPath, origins: Origins) -> str:
    """Tell where the value, or the nearest section around it, was set; else the first value inside it."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return origins[path[:end]]
    return next((where for known, where in origins.items() if known[: len(path)] == path), "")


def _origin_of_text(what: str, origins: Origins) -> str:
    """Tell where the key that a cross-section message starts with was set."""
    found = re.match(r"[a-z_]+(\.[a-z_0-9]+)*", what)
    return _origin(tuple(found[0].split(".")), origins) if found else ""


def problems_of(error: ValidationError | None, model: type[BaseModel], raw: Any) -> list[Problem]:
    """All problems of `raw`: pydantic's, with those of components expanded, and booleans given as numbers."""
    booleans = list(booleans_as_numbers(model, raw, ()))
    said = {p.path for p in booleans}
    found = [] if error is None else list(_expand(error, model, raw, ()))
    return [p for p in found if p.path not in said] + booleans


def _expand(
    error: ValidationError, model: type[BaseModel], raw: Any, prefix: KeyPath
) -> Iterator[Problem]:
    seen: set[KeyPath] = set()
    for details in error.errors():
        path = _real_path(details, raw)
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, ComponentConfigError):
            inside = _value_at(raw, path)
            inside = {"type": inside} if isinstance(inside, str) else inside
            yield from _expand(cause.error, cause.owner.Config, inside, (*prefix, *path))
        elif (
            path not in seen or not path
        ):  # a union reports every member: the first one says enough
            seen.add(path)
            yield from _describe(details, cause, model, path, prefix)


def _real_path(details: ErrorDetails, raw: Any) -> KeyPath:
    """Location as pydantic gives it, without the names of union members, which stand in no file."""
    path: list[str | int] = []
    here = raw
    location = details["loc"]
    for index, item in enumerate(location):
        last = index == len(location) - 1
        is_key = isinstance(here, dict) and isinstance(item, str) and item in here
        if is_key or (isinstance(here, list) and isinstance(item, int) and item < len(here)):
            here = here[item]
        elif not (last and details["type"] == "missing"):
            continue
        path.append(item)
    return tuple(path)


def _value_at(raw: Any, path: KeyPath) -> Any:
    for item in path:
        raw = raw[item]
    return raw


def _describe(
    details: ErrorDetails, cause: object, model: type[BaseModel], path: KeyPath, prefix: KeyPath
) -> Iterator[Problem]:
    full, kind = (*prefix, *path), details["type"]
    if kind == "extra_forbidden":
        what, fix = _unknown_key(model, path, prefix)
        yield Problem(full, what, value=details["input"], fix=fix)
    elif kind == "missing":
        yield Problem(full, "missing", fix=_how_to_fill(model, path))
    elif kind == "value_error":
        for part in str(cause).split(" | ") if not full else [str(cause)]:
            what, _, fix = part.partition("Fix: ")
            given = (
                {}
                if isinstance(details["input"], (dict, BaseModel))
                else {"value": details["input"]}
            )
            usual = "use one of them" if " Known: " in what else "correct it"
            yield Problem(full, what, fix=fix or usual, **given)
    else:
        what = _MUST_BE.get(kind) or _lower_first(
            details["msg"].replace("Input should be", "must be")
        )
        fix = _FIXES.get(kind, "give a value of that kind")
        for name, words in _LIMITS.items():
            if name in (context := details.get("ctx", {})):
                fix = f"give a value {words} {context[name]}"
        yield Problem(full, what, value=details["input"], fix=fix)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _unknown_key(root: type[BaseModel], path: KeyPath, prefix: KeyPath) -> tuple[str, str]:
    """Return what to say about a key that does not exist: a near name, or the section where it belongs."""
    model, key = model_at(root, path[:-1]), str(path[-1])
    fields = list(model.model_fields) if model else []
    close = difflib.get_close_matches(key, fields, n=1)
    close = close or [f for f in fields if _initials(f) == key]
    if close:
        return f"unknown key; did you mean {close[0]!r}?", "rename it"
    elsewhere = [] if prefix else _sections_with(root, key)
    if elsewhere:
        return f"unknown key; did you mean {elsewhere[0]!r}?", "move it there"
    similar = [f for f in fields if difflib.get_close_matches(key, f.split("_"), n=1)]
    if similar:
        return f"unknown key; did you mean {similar[0]!r}?", "rename it"
    return "unknown key", f"remove it; known here: {', '.join(fields)}"


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("_")) if "_" in name else ""


def _sections_with(model: type[BaseModel], key: str, prefix: str = "", depth: int = 0) -> list[str]:
    names = [n for n in model.model_fields if key in (n, _initials(n))] if depth else []
    found = [f"{prefix}{name}" for name in names]
    for name, field in model.model_fields.items():
        inner = _strip(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and depth < 3:
            found += _sections_with(inner, key, f"{prefix}{name}.", depth + 1)
    return found


def _how_to_fill(model: type[BaseModel], path: KeyPath) -> str:
    owner = model_at(model, path[:-1])
    field = owner.model_fields.get(str(path[-1])) if owner else None
    about = f" ({field.description.splitlines()[0]})" if field and field.description else ""
    return f"add the key {str(path[-1])!r}{about}"


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The section that `path` leads to, not entering components (they report their own errors)."""
    here: Any = model
    for item in path:
        if isinstance(item, int):
            here = _strip(_item_of(here))
        elif isinstance(here, type) and issubclass(here, BaseModel) and item in here.model_fields:
            here = _strip(here.model_fields[item].annotation)
        else:
            return None
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _item_of(annotation: Any) -> Any:
    arguments = get_args(annotation)
    return arguments[0] if arguments else None


def _strip(annotation: Any) -> Any:
    """Without Annotated and Optional."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            options = [a for a in get_args(annotation) if a is not type(None)]
            if len(options) != 1:
                return annotation
            annotation = options[0]
        else:
            return annotation


def booleans_as_numbers(model: type[BaseModel], raw: Any, prefix: KeyPath) -> Iterator[Problem]:
    """Fields for numbers that were given `true` or `false`; pydantic would take them for 1 and 0."""
    if not isinstance(raw, dict):
        return
    for name, field in model.model_fields.items():
        if name in raw:
            yield from _booleans_in(
                field.annotation, list(field.metadata), raw[name], (*prefix, name)
            )


def _booleans_in(
    annotation: Any, metadata: list[Any], raw: Any, path: KeyPath
) -> Iterator[Problem]:
    while get_origin(annotation) is Annotated:
        metadata = [*metadata, *get_args(annotation)[1:]]
        annotation = get_args(annotation)[0]
    options = (
        get_args(annotation)
        if get_origin(annotation) in (Union, types.UnionType)
        else (annotation,)
    )
    family = next((m.family for m in metadata if isinstance(m, FamilyField)), None)
    if isinstance(raw, bool):
        numeric = any(_strip(o) in (int, float) for o in options)
        literal = any(isinstance(a, bool) for o in options for a in get_args(o))
        if numeric and not literal and not any(_strip(o) in (bool, Any) for o in options):
            yield Problem(
                path, "must be a number, not true or false", value=raw, fix="write a number"
            )
    elif family is not None:
        if isinstance(raw, dict) and isinstance(raw.get("type"), str):
            owner = _component(family, raw["type"])
            if owner is not None:
                yield from booleans_as_numbers(owner, raw, path)
    else:
        for option in options:
            inner = _strip(option)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from booleans_as_numbers(inner, raw, path)
            elif get_origin(inner) in (tuple, list) and isinstance(raw, list):
                for index, item in enumerate(raw):
                    yield from _booleans_in(_item_of(inner), [], item, (*path, index))
            elif get_origin(option) is Annotated:
                yield from _booleans_in(option, [], raw, path)


def _component(family: Any, name: str) -> type[BaseModel] | None:
    try:
        owner: type[BaseModel] = family.resolve(name).Config
    except ConfigurationError:
        return None
    return owner
