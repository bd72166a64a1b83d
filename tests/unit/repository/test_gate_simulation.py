"""The simulated gate (`benchmarks/gate.py`, with fewer runs): progress is kept, chains of losses are not."""

from __future__ import annotations

import functools

from benchmarks.gate import ROUNDS, Row, rows

REPETITIONS = 25


@functools.cache
def of(rule: str) -> dict[float, Row]:
    return {row.gain: row for row in rows(REPETITIONS, [rule])}


def test_real_progress_is_kept_nearly_as_if_the_truth_were_known() -> None:
    for gain in (0.01, 0.03):
        best = max(of("always")[gain].gained, of("oracle")[gain].gained)
        assert best > ROUNDS * gain - 0.001
        assert of("if_better")[gain].gained > best - 0.02


def test_a_chain_of_losses_is_not_accepted() -> None:
    assert of("always")[-0.03].gained < -0.23
    assert of("if_better")[-0.03].gained > -0.06
    assert of("if_better")[-0.03].rejected > 2


def test_the_reported_score_is_that_of_the_version_and_not_of_its_luck() -> None:
    for row in of("if_better").values():
        assert row.final < 0.01
    lucky = of("before: one look, no error")
    assert all(row.first_look > 0.015 for row in lucky.values()), "the fault that this is about"
    assert lucky[0.03].gained < 0.2


def test_what_it_costs_is_bounded() -> None:
    found = of("if_better")
    assert found[0.03].cost < 1.5
    assert max(row.cost for row in found.values()) < 2.5


def test_it_repeats() -> None:
    assert rows(3, ["if_better"]) == rows(3, ["if_better"])
