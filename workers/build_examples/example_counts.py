"""Counts of the examples of a shard: sums and counts that the driver divides into metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from policies.examples.kind import Example


def count_examples(examples: Sequence[Example]) -> dict[str, float]:
    """Sums over the examples of what each counts (`Example.counts`): whole numbers stay whole, others are rounded."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for example in examples:
        for name, value in example.counts().items():
            values[name].append(value)
    return {
        name: sum(each) if all(isinstance(v, int) for v in each) else round(math.fsum(each), 9)
        for name, each in values.items()
    }
