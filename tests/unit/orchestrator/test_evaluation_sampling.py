"""A measurement samples as `evaluation` says in every respect, and as `rollout` says where it says nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import EvaluationSettings, RolloutSettings
from policies.base.records import Sampling

OTHER: dict[str, Any] = {
    "temperature": 0.31,
    "top_p": 0.42,
    "top_k": 17,
    "max_tokens": 33,
    "stop": ("END",),
}
OWN_DEFAULT = {"temperature": 0.7, "top_p": 1.0}
"""What `evaluation` says by itself, whatever `rollout` says."""


def config(**sections: dict[str, Any]) -> RunConfig:
    numbers = {"type": "arithmetic", "low": 2, "high": 5, "held_out": 3}
    return RunConfig.model_validate(
        {
            "policy": {"model": "x"},
            "prompts": {
                "train": numbers | {"split": "train"},
                "held_out": numbers | {"split": "held_out"},
                "per_round": 2,
            },
            "verifiers": [{"type": "numeric_match"}],
            "preferences": {"type": "right_vs_wrong"},
            **sections,
        }
    )


@pytest.mark.parametrize("section", [RolloutSettings, EvaluationSettings])
def test_every_sampling_setting_can_be_set_for_samples_and_for_measurements(
    section: type[BaseModel],
) -> None:
    assert set(Sampling.model_fields) <= set(section.model_fields)
    assert set(Sampling.model_fields) == set(OTHER), "a new setting needs a line here"


@pytest.mark.parametrize("name", OTHER)
def test_no_sampling_setting_is_dropped_on_its_way(name: str) -> None:
    value = OTHER[name]
    assert getattr(config(rollout={name: value}).rollout.sampling, name) == value
    assert getattr(config(evaluation={name: value}).evaluation_sampling, name) == value
    inherited = getattr(config(rollout={name: value}).evaluation_sampling, name)
    assert inherited == OWN_DEFAULT.get(name, value)


def test_a_measurement_can_turn_off_what_samples_are_drawn_with() -> None:
    both = config(rollout={"top_k": 17, "stop": ["END"]}, evaluation={"top_k": 0, "stop": []})
    assert both.evaluation_sampling.top_k == 0
    assert both.evaluation_sampling.stop == ()
