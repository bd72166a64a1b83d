"""The score that each verifier and judge gives one thing, by name: what combiners, builders and selectors read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from policies.base.records import Feedback, Verdict

_ALIKE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class SourceScore:
    """One source's score of one thing. Example: `SourceScore(score=0.75, weight=1.0)`."""

    score: float
    """Mean of its verdicts by their confidence."""
    weight: float = 1.0
    """Share in a mean over sources: the source's weight times its mean confidence."""
    raw: bool = False
    """The score may be any finite number instead of [0, 1]."""


def scores_by_source(
    verdicts: Iterable[Verdict], weights: Mapping[str, float] = _ALIKE
) -> dict[str, SourceScore]:
    """Scores by source, in the order of their first verdicts; abstentions and errors have none.

    Example: `scores_by_source(feedback.verdicts)["numeric_match"].score`, for attempts that are graded as a whole.
    """
    found: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if counts(verdict):
            found[verdict.source].append(verdict)
    scores = {}
    for source, of_one in found.items():
        confidences = [v.confidence for v in of_one]
        scores[source] = SourceScore(
            score=weighted_mean([v.score or 0.0 for v in of_one], confidences),
            weight=weights.get(source, 1.0) * math.fsum(confidences) / len(of_one),
            raw=any(v.raw for v in of_one),
        )
    return scores


def counts(verdict: Verdict) -> bool:
    """Tell whether a verdict has a part in a score: one that its source has no confidence in is an abstention."""
    return verdict.score is not None and verdict.confidence > 0


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean; of equal values exactly that value, so that no threshold is missed by rounding."""
    if len(set(values)) == 1:
        return values[0]
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def spread(feedback: Feedback) -> float | None:
    """Distance between the highest and the lowest score that sources give an attempt: how unsure its score is.

    Of the sources that score whole attempts in [0, 1]; None where fewer than two do.
    """
    found = scores_by_source(v for v in feedback.verdicts if v.span is None)
    scores = [each.score for each in found.values() if not each.raw]
    return max(scores) - min(scores) if len(scores) > 1 else None
