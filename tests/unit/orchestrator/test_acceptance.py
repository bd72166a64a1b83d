"""Acceptance: what is clearly worse is rolled back, by a paired test against the serving and the best version."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from orchestrator.acceptance.measurement import Evidence, Measurement, PromptCounts
from orchestrator.acceptance.rule import ACCEPTANCE, AcceptanceRule
from policies.base.component import create

SAMPLES = 8


def rule(**settings: object) -> AcceptanceRule:
    made: AcceptanceRule = create(ACCEPTANCE.parse(settings))
    return made


def measured(version: int, *right: int, times: int = 1) -> Measurement:
    asked = (SAMPLES,) * len(right)
    one = PromptCounts(
        asked=asked,
        measured=asked,
        right=right,
        score_sum=tuple(map(float, right)),
        ended=asked,
        ended_right=right,
    )
    return Measurement.of(version, [one] * times, {})


def named(version: int, **metrics: float) -> Measurement:
    return Measurement(version, {f"eval/{name}": value for name, value in metrics.items()})


def evidence(new: Measurement, old: Measurement, **earlier: Measurement) -> Evidence:
    return Evidence(new, old, {m.version: m for m in earlier.values()})


SERVING = measured(3, *[2, 3, 4, 5, 6, 1] * 4)


@pytest.mark.parametrize(
    ("lost", "confidence", "worse_by", "accepted"),
    [
        (-1, 0.9, 0.0, True),  # better
        (0, 0.9, 0.0, True),
        (1, 0.9, 0.0, False),  # 0.125 on every prompt
        (1, 0.9, 0.2, True),
        (1, 0.9999, 0.0, True),
    ],
)
def test_only_what_is_clearly_worse_is_rolled_back(
    lost: int, confidence: float, worse_by: float, accepted: bool
) -> None:
    candidate = measured(4, *[n - lost for n in [2, 3, 4, 5, 6, 1] * 4])
    decision = rule(type="if_better", confidence=confidence, worse_by=worse_by).decide(
        evidence(candidate, SERVING)
    )
    assert decision.accepted is accepted


def test_a_small_loss_is_kept_and_its_noise_is_told() -> None:
    candidate = measured(4, *[1, 3, 5, 4, 6, 1] * 4)
    decision = rule(type="if_better").decide(evidence(candidate, SERVING))
    assert decision.accepted
    assert "-0.021 +- 0.0" in decision.reason
    assert "24 prompts" in decision.reason


def test_a_chain_of_losses_each_within_noise_is_caught_as_a_whole() -> None:
    best = measured(1, *[4, 5, 6, 5, 6, 4] * 4)
    serving = measured(2, *[4, 5, 5, 4, 5, 3] * 4)
    candidate = measured(3, *[4, 5, 4, 3, 4, 3] * 4)
    alone = rule(type="if_better", confidence=0.99).decide(evidence(candidate, serving))
    assert alone.accepted, "against the last version it is within noise"
    decision = rule(type="if_better", confidence=0.99).decide(
        evidence(candidate, serving, best=best)
    )
    assert not decision.accepted
    assert decision.back_to == 1, "the best version serves again"
    assert "version 1" in decision.reason


def test_what_the_candidate_seems_to_lose_against_is_measured_again() -> None:
    lucky = measured(1, *[7, 8, 6, 8, 7, 8] * 4)
    candidate = measured(3, *[2, 3, 4, 5, 6, 1] * 4)
    asked = rule(type="if_better").measure_again
    assert asked(evidence(candidate, SERVING)) == (), "as good as the one that serves"
    assert asked(evidence(candidate, measured(2, *[2, 3, 4, 4, 6, 1] * 4), lucky=lucky)) == (1,)
    assert asked(evidence(candidate, lucky)) == (1,)


def test_a_version_of_which_an_older_pawl_kept_no_attempts_is_measured_again() -> None:
    candidate, old = measured(3, *[4] * 24), named(2, **{"pass@1": 0.4})
    assert rule(type="if_better").measure_again(evidence(candidate, old)) == (2,)


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
def test_a_margin_compares_the_values_as_they_are(
    new: float, old: float, margin: float, accepted: bool
) -> None:
    decision = rule(type="if_better", margin=margin).decide(
        evidence(named(1, **{"pass@1": new}), named(0, **{"pass@1": old}))
    )
    assert decision.accepted is accepted
    assert f"{new:.4f}" in decision.reason


def test_a_metric_without_a_value_by_prompt_is_compared_as_it_is() -> None:
    better = rule(type="if_better", metric="eval/outcome")
    assert better.decide(evidence(named(1, outcome=0.5), named(0, outcome=0.5))).accepted
    assert not better.decide(evidence(named(1, outcome=0.4), named(0, outcome=0.5))).accepted


def test_a_metric_that_was_not_measured_is_no_improvement_and_is_named() -> None:
    new, old = named(1, **{"pass@1": 1.0}), named(0, **{"pass@1": 0.0})
    decision = rule(type="if_better", metric="eval/none").decide(evidence(new, old))
    assert not decision.accepted
    assert "eval/none" in decision.reason
    assert "eval/pass@1" in decision.reason


def test_always_accepts_a_worse_policy_and_selects_nothing() -> None:
    always = rule(type="always")
    assert always.decide(evidence(measured(1, 0, 0), measured(0, 8, 8))).accepted
    assert not always.selects
    assert rule(type="if_better").selects


def test_a_measurement_reads_like_its_metrics() -> None:
    found: Mapping[str, float] = measured(1, 4, 8)
    assert found["eval/pass@1"] == 0.75
    assert dict(found)["eval/prompts"] == 2
    assert len(found) == len(list(found))


def test_a_serving_version_that_could_not_be_measured_rejects_nothing() -> None:
    decision = rule(type="if_better").decide(evidence(measured(4, *[1] * 8), named(3)))
    assert decision.accepted
    assert decision.reason == "not decided: version 3 has no eval/pass@1 to compare with"
