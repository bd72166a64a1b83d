"""The lowest score of all sources: good is what nobody objects to."""

from __future__ import annotations

from collections.abc import Sequence

from workers.scoring.combiner import Combiner, Scores


class Minimum(Combiner):
    """Lowest score of the sources that scored; weights have no part in it."""

    def combine(self, group: Sequence[Scores]) -> list[float | None]:
        return [min((s.score for s in scores.values()), default=None) for scores in group]
