"""A veto of named sources: what falls below one of their thresholds scores 0, whatever the others say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from policies.base.bounds import Score
from policies.base.errors import explain
from workers.scoring.combiner import Combiner, Scores, mixed, remedy
from workers.scoring.combiners.mean import mean_of


class Veto(Combiner):
    """Scores 0 what a named source puts below its threshold; the rest by the weighted mean of the other sources.

    A named source that abstained vetoes nothing. Where no other source scored, what passed scores 1.
    """

    class Config(Combiner.Config):
        """Settings of `veto`."""

        sources: dict[str, Score] = Field(min_length=1)
        """The lowest score that passes, by the name of a verifier or judge, e.g. `{format_rules: 1.0}`."""

        def names(self) -> tuple[str, ...]:
            return tuple(self.sources)

        def refused_scores(self, sources: Mapping[str, bool]) -> str | None:
            others = [name for name in sources if name not in self.sources]
            raw = [name for name in others if sources[name]]
            if raw:
                return explain(
                    f"a veto scores 0, and {', '.join(raw)} may give less than that to what passes",
                    value="veto",
                    where="feedback.combine",
                    fix=f"set {remedy(raw)}",
                )
            given = {
                n: least for n, least in self.sources.items() if n in sources
            }  # judges never measure
            wrong = [n for n, least in given.items() if not _can_be(least, sources[n])]
            if wrong:
                return explain(
                    f"the threshold of {wrong[0]} lies outside its scores in [0, 1]",
                    value=self.sources[wrong[0]],
                    where=f"feedback.combine.sources.{wrong[0]}",
                    fix="give a number in [0, 1]",
                )
            return mixed(self.type, {name: sources[name] for name in others})

        def gives_raw(self, sources: Mapping[str, bool]) -> bool:
            return False

    config: Config

    def combine(self, group: Sequence[Scores]) -> list[float | None]:
        return [self._one(scores) for scores in group]

    def _one(self, scores: Scores) -> float | None:
        gates = self.config.sources
        if any(name in scores and scores[name].score < least for name, least in gates.items()):
            return 0.0
        others = {name: score for name, score in scores.items() if name not in gates}
        passed = 1.0 if scores else None
        return mean_of(others) if others else passed


def _can_be(threshold: float, raw: bool) -> bool:
    return raw or 0.0 <= threshold <= 1.0
