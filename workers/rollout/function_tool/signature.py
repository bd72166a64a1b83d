"""A plain function as a tool: JSON schema and argument checks from its signature, type hints and docstring."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from policies.base.errors import ConfigurationError
from policies.base.records import Json

_PARAMETER = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
_NUM_PROBLEMS = 3


class ArgumentProblemsError(Exception):
    """The arguments do not fit the schema; the text says which and why."""


class FunctionSignature:
    """The parameters that a function takes. Only parameters that can be given by name are possible."""

    def __init__(self, function: Callable[..., Any], reference: str) -> None:
        """Read the signature.

        Args:
            function: what is called.
            reference: how the config names it, for messages.

        Raises:
            ConfigurationError: it takes `*args`, `**kwargs` or positional-only parameters, or a type hint cannot be
                put in a JSON schema.
        """
        self._reference = reference
        summary, meanings = _read_docstring(inspect.getdoc(function) or "")
        self.description = summary
        try:
            parameters = inspect.signature(function).parameters
            hints = typing.get_type_hints(function, include_extras=True)
        except (TypeError, ValueError, NameError, AttributeError) as error:
            raise self._refused(f"its signature cannot be read: {error}") from error
        fields: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        for index, parameter in enumerate(parameters.values()):
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise self._refused(f"the parameter {parameter} cannot be given by name")
            # Numbered fields with aliases: any parameter name is possible, also `schema` or `_x`.
            field = f"p{index}"
            self._names[field] = parameter.name
            required = parameter.default is parameter.empty
            fields[field] = (
                hints.get(parameter.name, Any),
                Field(
                    default=... if required else parameter.default,
                    alias=parameter.name,
                    description=meanings.get(parameter.name),
                ),
            )
        settings = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        try:
            self._model: type[BaseModel] = create_model("Arguments", __config__=settings, **fields)
            self.parameters = _without_titles(self._model.model_json_schema(mode="validation"))
        except (PydanticUserError, TypeError, ValueError) as error:
            raise self._refused(f"a type hint cannot be put in a JSON schema: {error}") from error

    def checked(self, arguments: Mapping[str, Json]) -> dict[str, Any]:
        """The values to call the function with.

        Raises:
            ArgumentProblemsError: they do not fit; at most three problems are named.
        """
        try:
            # In the JSON mode of strict validation a list may become a tuple, but a text never a number.
            model = self._model.model_validate_json(json.dumps(dict(arguments)))
        except ValidationError as error:
            raise ArgumentProblemsError(_problems(error)) from error
        given = model.model_fields_set
        return {
            name: getattr(model, field) for field, name in self._names.items() if field in given
        }

    def _refused(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"the function {self._reference!r} cannot be a tool: {what}; it needs named parameters with plain type "
            "hints (str, int, float, bool, list, dict, Literal)"
        )


def _problems(error: ValidationError) -> str:
    told = []
    for problem in error.errors(include_url=False, include_input=False)[:_NUM_PROBLEMS]:
        place = ".".join(str(part) for part in problem["loc"])[:80]
        kinds = {"missing": "is missing", "extra_forbidden": "is unknown"}
        what = kinds.get(problem["type"], f"is wrong: {problem['msg'][:120]}")
        told.append(f"the argument {place!r} {what}")
    return "; ".join(told)


def _without_titles(schema: Any) -> Any:
    # pydantic's titles repeat the names: words that a small model would have to read.
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: (
            {name: _without_titles(item) for name, item in value.items()}
            if key in ("properties", "$defs") and isinstance(value, dict)
            else _without_titles(value)
        )
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what the section `Args:` says of each parameter."""
    lines = text.splitlines()
    summary: list[str] = []
    for line in lines:
        if not line.strip():
            break
        summary.append(line.strip())
    meanings: dict[str, str] = {}
    inside, last = False, ""
    for line in lines:
        if line.strip() in ("Args:", "Arguments:", "Parameters:"):
            inside = True
        elif inside and line.strip() and not line.startswith((" ", "\t")):
            inside = False
        elif inside and line.strip():
            found = _PARAMETER.fullmatch(line.strip())
            if found is not None:
                last = found.group(1)
                meanings[last] = found.group(2)
            elif last:
                meanings[last] = f"{meanings[last]} {line.strip()}"
    return " ".join(summary), meanings
