"""The product of all scores: as probabilities of independent demands, that of all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from policies.base.errors import explain
from workers.scoring.combiner import Combiner, Scores, remedy


class Product(Combiner):
    """Product of the scores of the sources that scored, each in [0, 1]; weights have no part in it."""

    class Config(Combiner.Config):
        """Settings of `product`: none."""

        def refused_scores(self, sources: Mapping[str, bool]) -> str | None:
            raw = [name for name, is_raw in sources.items() if is_raw]
            if not raw:
                return None
            return explain(
                f"a product is of scores in [0, 1], and {', '.join(raw)} gives any number",
                value="product",
                where="feedback.combine",
                fix=f"set {remedy(raw)}",
            )

    def combine(self, group: Sequence[Scores]) -> list[float | None]:
        return [math.prod(s.score for s in scores.values()) if scores else None for scores in group]
