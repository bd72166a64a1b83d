"""The `score_spread` metric: how far apart the scores of one prompt's attempts are, so what there is to learn from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from policies.base.records import ScoredGroup
from workers.scoring.metric import Metric


class ScoreSpread(Metric):
    """Measures the spread of scores among the attempts at a prompt: standard deviation, and best less worst."""

    def measure(self, group: ScoredGroup) -> Mapping[str, float] | None:
        """Return `std` and `range`; None with fewer than two usable scores."""
        scores = [f.score for f in group.feedback if f.score is not None]
        if len(scores) < 2:
            return None
        return {"std": statistics.pstdev(scores), "range": max(scores) - min(scores)}
