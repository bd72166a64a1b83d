"""The weighted mean over all sources."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.source_scores import weighted_mean
from workers.scoring.combiner import Combiner, Scores


class Mean(Combiner):
    """Mean of the sources that scored, by `weight` times confidence."""

    def combine(self, group: Sequence[Scores]) -> list[float | None]:
        return [mean_of(scores) for scores in group]


def mean_of(scores: Scores) -> float | None:
    """Weighted mean of the scores; None without any."""
    if not scores:
        return None
    found = weighted_mean([s.score for s in scores.values()], [s.weight for s in scores.values()])
    if any(s.raw for s in scores.values()):
        return found
    return min(1.0, max(0.0, found))  # rounding can step over the ends by one unit
