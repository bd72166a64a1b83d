"""Every shipped config loads, agrees with the schema, and can be planned."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from orchestrator.config.files import load_config, shipped_configs
from orchestrator.config.json_schema import config_schema
from orchestrator.config.run_config import RunConfig
from orchestrator.config.strict_yaml import parse_yaml, read_config_text
from orchestrator.plan.preflight import make_plan

NAMES = sorted(shipped_configs())


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(config_schema())


def test_the_promised_configs_ship() -> None:
    assert {"quickstart", "quickstart-kto", "judge-dpo", "gsm8k-dpo-1gpu", "fake-smoke"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_is_valid(name: str) -> None:
    assert load_config(name).config.rounds >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_agrees_with_the_schema(
    name: str, validator: jsonschema.Draft202012Validator
) -> None:
    value = parse_yaml(read_config_text(shipped_configs()[name]), name=name).value
    assert [e.message for e in validator.iter_errors(value)] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_tree_of_a_shipped_config_gives_the_same_config(name: str) -> None:
    config = load_config(name).config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_can_be_planned_for_another_machine(name: str, tmp_path: Path) -> None:
    plan = make_plan(load_config(name).config, run_folder=tmp_path / "runs" / "x-1", elsewhere=True)
    missing_demo_model = [
        p for p in plan.of("problem") if "the demo model is not in the cache" in p.found
    ]
    assert plan.of("problem") == missing_demo_model


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_says_how_to_run_it(name: str) -> None:
    text = read_config_text(shipped_configs()[name])
    assert f"pawl run {name}" in text
    assert "unrun" in text or "1gpu" not in name


def test_the_readme_lists_every_config() -> None:
    readme = (shipped_configs()["quickstart"].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in NAMES)
