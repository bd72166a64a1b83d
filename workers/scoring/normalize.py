"""Brings the raw scores of a source to a scale of their own group, or to [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from policies.base.source_scores import SourceScore
from workers.scoring.combiner import Scores

Scale = Literal["rank", "min_max", "sigmoid", "z_score"]
GROUP_SCALES = frozenset({"rank", "min_max", "z_score"})
"""Scales on which a score tells how an attempt stands among those at its prompt, and nothing of the policy."""


def stays_raw(scale: str) -> bool:
    """Tell whether scores on this scale may leave [0, 1]."""
    return scale == "z_score"


def normalized(group: Sequence[Scores], scales: Mapping[str, Scale]) -> list[Scores]:
    """`group` with the scores of each source in `scales` on its scale; the others as they are."""
    found = [dict(scores) for scores in group]
    for source, scale in scales.items():
        having = [scores for scores in found if source in scores]
        values = _SCALES[scale]([scores[source].score for scores in having])
        for scores, value in zip(having, values, strict=True):
            scores[source] = SourceScore(value, scores[source].weight, stays_raw(scale))
    return list(found)


def _ranks(values: Sequence[float]) -> list[float]:
    """Shares of the others that each is above, ties counting half; 0.5 for one alone."""
    if len(values) < 2:
        return [0.5] * len(values)
    return [
        (sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2) / (len(values) - 1)
        for v in values
    ]


def _min_max(values: Sequence[float]) -> list[float]:
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:
        return [0.5] * len(values)
    return [(v - low) / (high - low) for v in values]


def _sigmoids(values: Sequence[float]) -> list[float]:
    return [_sigmoid(v) for v in values]


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))


def _z_scores(values: Sequence[float]) -> list[float]:
    """Distances from the mean in standard deviations of the group; 0 where all are equal."""
    if len(set(values)) < 2:
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / deviation if deviation else 0.0 for v in values]


_SCALES: Mapping[Scale, Callable[[Sequence[float]], list[float]]] = MappingProxyType(
    {"rank": _ranks, "min_max": _min_max, "sigmoid": _sigmoids, "z_score": _z_scores}
)
