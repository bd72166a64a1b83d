"""The JSON Schema of a config, for editors: every section, every shipped component, every docstring.

Each family of components is one definition at the root, so a judge's engine and a rollout engine share it.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from orchestrator.config.families import FAMILIES
from orchestrator.config.plug_ins.host import ask, hosting
from orchestrator.config.plug_ins.messages import Question
from orchestrator.config.run_config import RunConfig
from policies.base.component import Family
from policies.base.errors import ConfigurationError

_REF = "#/$defs/"
_MAX_DEPTH = 8


class _Generator(GenerateJsonSchema):
    """Writes a reference where a field takes any member of a family."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        family = _family_of(schema)
        if family is not None:
            return {"x-family": family.name}
        return super().generate_inner(schema)


def _family_of(schema: Any) -> Family[Any] | None:
    """The family whose `parse` a core schema calls, if that is all it does."""
    if schema.get("type") != "function-plain":
        return None
    called = schema["function"]["function"]
    owner = called.__self__ if inspect.ismethod(called) else None
    return owner if isinstance(owner, Family) else None


def config_schema() -> dict[str, Any]:
    """The schema of `RunConfig`, users' own components allowed."""
    definitions: dict[str, Any] = {}
    body = _described(RunConfig, definitions)
    with hosting():
        for family in FAMILIES:
            definitions[family.name.replace(" ", "-")] = _family_schema(family, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **body,
        "title": "Pawl config",
        "$defs": dict(sorted(definitions.items())),
    }


def _family_schema(family: Family[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A bare name, a shipped or installed member with its settings, or a component of the user's."""
    options: list[dict[str, Any]] = [{"type": "string"}]
    for name in family.members():
        if family.is_foreign(name):
            described = _foreign(family, name)
        else:
            described = _described(family.resolve(name).Config, definitions)
        described.setdefault("properties", {})["type"] = {"const": name}
        described["title"] = f"{family.name} {name}"
        options.append(described)
    own = {"type": "string", "pattern": ":", "description": "package.module:Name or ./file.py:name"}
    options.append(
        {
            "title": f"your own {family.name}",
            "type": "object",
            "properties": {"type": own},
            "required": ["type"],
        }
    )
    return {"anyOf": options}


def _foreign(family: Family[Any], name: str) -> dict[str, Any]:
    """Return what an installed member takes, told by a process of its own; anything, when it cannot be imported."""
    try:
        told = ask(Question.SCHEMA, {"family": family.name, "name": name})
    except ConfigurationError:
        return {"type": "object"}
    return dict(told["schema"])


def foreign_schema(family_name: str, name: str) -> dict[str, Any]:
    """The schema of an installed member, in the process that may import it: complete in itself, families left open."""
    family = next(f for f in FAMILIES if f.name == family_name)
    schema = family.resolve(name).Config.model_json_schema(schema_generator=_Generator)
    own: dict[str, Any] = schema.pop("$defs", {})
    return cast("dict[str, Any]", _inlined(schema, own, depth=0))


def _inlined(node: Any, own: dict[str, Any], depth: int) -> Any:
    """`node` with the definitions that it points to in the place of the references."""
    if isinstance(node, list):
        return [_inlined(item, own, depth) for item in node]
    if not isinstance(node, dict):
        return node
    if "x-family" in node:
        return {"$ref": _REF + node["x-family"].replace(" ", "-")}
    name = str(node.get("$ref", "")).removeprefix(_REF)
    if name in own:
        return _inlined(own[name], own, depth + 1) if depth < _MAX_DEPTH else {"type": "object"}
    return {key: _inlined(value, own, depth) for key, value in node.items()}


def _described(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one model, its own definitions moved to `definitions`."""
    schema = model.model_json_schema(schema_generator=_Generator)
    own: dict[str, Any] = schema.pop("$defs", {})
    renamed = {
        name: _free_name(name, _pointed(value, {}), definitions) for name, value in own.items()
    }
    for name, value in own.items():
        definitions[renamed[name]] = _pointed(value, renamed)
    pointed = _pointed(schema, renamed)
    assert isinstance(pointed, dict)
    return pointed


def _free_name(name: str, value: Any, definitions: dict[str, Any]) -> str:
    """`name`, or a numbered one when another definition has it already."""
    candidate, number = name, 2
    while definitions.get(candidate, value) != value:
        candidate, number = f"{name}{number}", number + 1
    return candidate


def _pointed(node: Any, renamed: dict[str, str]) -> Any:
    """`node` with its references under their final names."""
    if isinstance(node, list):
        return [_pointed(item, renamed) for item in node]
    if not isinstance(node, dict):
        return node
    if "x-family" in node:
        rest = {k: v for k, v in node.items() if k != "x-family"}
        return {**rest, "$ref": _REF + node["x-family"].replace(" ", "-")}
    result = {key: _pointed(value, renamed) for key, value in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str):
        name = reference.removeprefix(_REF)
        result["$ref"] = _REF + renamed.get(name, name)
    return result
