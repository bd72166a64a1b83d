"""Measured numbers on their way to a round's metrics: a name, a value, and the reduction that joins it with others.

Workers add what they measure where they measure it; the sums travel in the summaries of shards; the driver joins them
and divides. A number that is measured here needs no line anywhere else to be reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from policies.base.errors import explain

KEY = "measured"
"""Key of the measured numbers in the summary of a shard."""
ERRORS = "metric_errors"
"""Key of what could not be measured: by metric, how often, and the first error."""
MAX_MEASURED = 64
"""Different names in one summary: summaries travel to the driver, which keeps them while a phase lasts."""


class Reduction(StrEnum):
    """The way in which numbers of one name become one."""

    MEAN = "mean"
    SUM = "sum"
    MIN = "min"
    MAX = "max"


class Measured:
    """Numbers by name, joined as they come; equal whatever the order of the shards, up to rounding."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Reduction], list[float]] = {}

    def add(self, name: str, value: float, reduction: Reduction = Reduction.MEAN) -> None:
        """Take a number in.

        Raises:
            ValueError: it is not finite, or is one name too many.
        """
        check_finite(name, value)
        if (name, reduction) not in self._found and len(self._found) >= MAX_MEASURED:
            fix = "measure fewer things, or fewer at once"
            what = f"more than {MAX_MEASURED} metrics have names of their own"
            raise ValueError(explain(what, value=name, where="metrics", fix=fix))
        self._found.setdefault((name, reduction), []).append(float(value))

    def summary(self) -> dict[str, Any]:
        """Return what a shard tells: by name the reduction, the joined value and how many numbers it is made of."""
        return {
            name: [reduction.value, _joined(values, reduction), len(values)]
            for (name, reduction), values in sorted(self._found.items())
        }


def check_finite(name: str, value: float) -> None:
    """Refuse a number that cannot be joined with others.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(value):
        fix = "return a finite number, or leave the name out"
        raise ValueError(explain("a metric is not finite", value=value, where=name, fix=fix))


def reduced(summaries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Join what the shards measured; names are sorted.

    Args:
        summaries: of shards; those without measured numbers are passed over.
    """
    parts: dict[tuple[str, Reduction], list[tuple[float, int]]] = {}
    for summary in summaries:
        for name, (reduction, value, count) in summary.get(KEY, {}).items():
            parts.setdefault((name, Reduction(reduction)), []).append((value, count))
    found = {}
    for (name, reduction), of_one in sorted(parts.items()):
        joined = _joined([value for value, _ in of_one], reduction)
        # The parts of a mean are sums.
        number = sum(count for _, count in of_one)
        found[name] = joined / number if reduction is Reduction.MEAN else joined
    return found


def _joined(values: list[float], reduction: Reduction) -> float:
    if reduction is Reduction.MIN:
        return min(values)
    return max(values) if reduction is Reduction.MAX else math.fsum(values)
