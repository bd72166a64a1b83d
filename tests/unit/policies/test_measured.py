"""Measured numbers are joined by their reduction, whatever the shards that they came in."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from policies.base.measured import KEY, MAX_MEASURED, Measured, Reduction, reduced

NUMBERS = [3.0, -1.5, 0.25, 8.0, 8.0, -7.0]
EXPECTED = {
    Reduction.MEAN: sum(NUMBERS) / len(NUMBERS),
    Reduction.SUM: sum(NUMBERS),
    Reduction.MIN: -7.0,
    Reduction.MAX: 8.0,
}


@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 6), (0, 2, 5, 6), tuple(range(7))])
def test_a_number_does_not_depend_on_how_it_was_cut_into_shards(
    reduction: Reduction, cuts: tuple[int, ...]
) -> None:
    summaries = []
    for start, end in pairwise(cuts):
        shard = Measured()
        for number in NUMBERS[start:end]:
            shard.add("mine", number, reduction)
        summaries.append(json.loads(json.dumps({KEY: shard.summary(), "rows": 1})))
    assert reduced([*summaries, {}]) == {"mine": pytest.approx(EXPECTED[reduction])}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a metric is not finite"):
        Measured().add("mine", value)


def test_names_without_end_are_refused() -> None:
    found = Measured()
    for index in range(MAX_MEASURED):
        found.add(str(index), 1.0)
    found.add("0", 2.0)
    with pytest.raises(ValueError, match="have names of their own"):
        found.add("one more", 1.0)
