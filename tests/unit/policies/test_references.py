"""Reference schedules: which versions, in which shares, from the versions that served."""

from __future__ import annotations

from typing import Any

import pytest

from policies.base.errors import ConfigurationError
from policies.objectives.reference import REFERENCES, ReferencePlan


def plan(name: str, served: list[int], **settings: Any) -> ReferencePlan:
    config: Any = REFERENCES.parse({"type": name, **settings})
    result: ReferencePlan = config.component(config).plan(served)
    return result


def shares(result: ReferencePlan) -> dict[int, float]:
    return {part.version: part.weight for part in result.parts}


def test_refresh_is_the_policy_that_the_round_starts_from() -> None:
    assert plan("refresh", [0]).single == 0
    assert plan("refresh", [0, 1, 2]).single == 2
    assert plan("refresh", [0, 1, 1]).single == 1, "after a rollback the old version serves again"


def test_initial_never_moves() -> None:
    assert [plan("initial", list(range(n))).single for n in (1, 2, 5)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("served", "rounds", "expected"),
    [([0], 2, 0), ([0, 1], 2, 0), ([0, 1, 2, 3], 2, 1), ([0, 1, 2, 3], 1, 2), ([0, 1, 1, 2], 2, 1)],
)
def test_rounds_ago_counts_rounds_and_stops_at_the_initial_model(
    served: list[int], rounds: int, expected: int
) -> None:
    assert plan("rounds_ago", served, rounds=rounds).single == expected


def test_moving_average_has_the_worked_shares() -> None:
    assert plan("moving_average", [0], alpha=0.6).single == 0
    assert shares(plan("moving_average", [0, 1], alpha=0.6)) == pytest.approx({0: 0.4, 1: 0.6})
    assert shares(plan("moving_average", [0, 1, 2], alpha=0.6)) == pytest.approx(
        {0: 0.16, 1: 0.24, 2: 0.6}
    )


def test_moving_average_equals_the_update_made_round_by_round() -> None:
    weights = [1.0, 2.0, -3.0, 5.0]  # the value of one weight in each version
    average = weights[0]
    for value in weights[1:]:
        average = 0.3 * value + 0.7 * average
    closed = plan("moving_average", [0, 1, 2, 3], alpha=0.3)
    assert sum(weights[v] * share for v, share in shares(closed).items()) == pytest.approx(average)


def test_a_version_that_served_twice_counts_twice() -> None:
    assert shares(plan("moving_average", [0, 1, 1], alpha=0.5)) == pytest.approx({0: 0.25, 1: 0.75})


def test_tiny_shares_are_dropped_and_the_rest_sums_to_one() -> None:
    result = shares(plan("moving_average", list(range(30)), alpha=0.6))
    assert set(result) == {25, 26, 27, 28, 29}
    assert sum(result.values()) == pytest.approx(1.0)


def test_alpha_one_is_refresh() -> None:
    assert plan("moving_average", [0, 1, 2], alpha=1.0) == plan("refresh", [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rounds_ago", {"rounds": 0}),
        ("moving_average", {"alpha": 0.0}),
        ("moving_average", {"alpha": 1.5}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        plan(name, [0], **settings)


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="moving_average"):
        plan("moving_averge", [0])
