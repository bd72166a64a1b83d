"""Acceptance: keep or roll back by a named metric and a margin."""

from __future__ import annotations

import pytest

from orchestrator.acceptance.rule import ACCEPTANCE, AcceptanceRule
from policies.component import create


def rule(**settings: object) -> AcceptanceRule:
    made: AcceptanceRule = create(ACCEPTANCE.parse(settings))
    return made


@pytest.mark.parametrize(
    ("new", "old", "margin", "accepted"),
    [
        (0.5, 0.4, 0.0, True),
        (0.4, 0.4, 0.0, True),
        (0.39, 0.4, 0.0, False),
        (0.39, 0.4, -0.02, True),
        (0.44, 0.4, 0.05, False),
    ],
)
def test_if_better_compares_with_the_margin(
    new: float, old: float, margin: float, accepted: bool
) -> None:
    decision = rule(type="if_better", margin=margin).decide(
        {"eval/pass@1": new}, {"eval/pass@1": old}
    )
    assert decision.accepted is accepted
    assert f"{new:.4f}" in decision.reason


def test_a_metric_that_was_not_measured_is_no_improvement_and_is_named() -> None:
    decision = rule(type="if_better", metric="eval/none").decide(
        {"eval/pass@1": 1.0}, {"eval/pass@1": 0.0}
    )
    assert not decision.accepted
    assert "eval/none" in decision.reason
    assert "eval/pass@1" in decision.reason


def test_always_accepts_a_worse_policy() -> None:
    assert rule(type="always").decide({"eval/pass@1": 0.0}, {"eval/pass@1": 1.0}).accepted
