"""The `distinct_answers` metric: the share of attempts at a prompt that say something else than those before."""

from __future__ import annotations

from policies.base.records import ScoredGroup, TrajectoryStatus
from workers.scoring.metric import Metric


class DistinctAnswers(Metric):
    """Measures diversity: different final texts over attempts; 1 where no two are equal."""

    def measure(self, group: ScoredGroup) -> float | None:
        """Return the share; None where nothing was sampled."""
        texts = [
            " ".join(t.completion.split())
            for t in group.trajectories
            if t.status is not TrajectoryStatus.ERROR
        ]
        return len(set(texts)) / len(texts) if texts else None
