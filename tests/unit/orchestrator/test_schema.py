"""The exported JSON Schema: valid, complete, and of one mind with the config models."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest

from orchestrator.config.families import FAMILIES
from orchestrator.config.json_schema import config_schema
from orchestrator.config.strict_yaml import parse_yaml

SMALL = """\
policy: {model: smollm2-135m-instruct}
prompts:
  train: {type: arithmetic, split: train}
  held_out: {type: arithmetic, split: held_out}
verifiers: [numeric_match, {type: './mine.py:score', anything: 1}]
judges: [{type: pairwise, backend: {type: engine, engine: {type: vllm}}}]
preferences: {type: right_vs_wrong}
"""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_schema()


def complaints(schema: dict[str, Any], value: Any) -> list[str]:
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return {r for item in node for r in references(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own | {r for value in node.values() for r in references(value)}


def test_the_schema_is_valid_and_all_its_references_lead_somewhere(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert "$defs" not in str(dict(schema["$defs"])).replace("#/$defs/", "")


def test_every_shipped_component_is_an_option(schema: dict[str, Any]) -> None:
    for family in FAMILIES:
        options = schema["$defs"][family.name.replace(" ", "-")]["anyOf"]
        named = {o["properties"]["type"].get("const") for o in options if "properties" in o}
        assert set(family.members()) <= named


def test_a_config_that_loads_passes_and_a_wrong_one_does_not(schema: dict[str, Any]) -> None:
    value = parse_yaml(SMALL, name="small").value
    assert complaints(schema, value) == []
    for path, wrong in (
        ("rounds", "three"),
        ("rollot", {}),
        ("preferences", {"type": "right_vs_wrong", "x": 1}),
    ):
        changed = copy.deepcopy(value)
        changed[path] = wrong
        assert complaints(schema, changed)


def test_every_setting_is_described(schema: dict[str, Any]) -> None:
    for name, section in schema["$defs"].items():
        if name.endswith("Settings"):
            for key, setting in section["properties"].items():
                assert setting.get("description"), f"{name}.{key}"
