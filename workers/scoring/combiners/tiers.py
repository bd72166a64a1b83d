"""Sources in order of rank: a later one only orders what the earlier ones leave equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from workers.scoring.combiner import Combiner, Scores


class Tiers(Combiner):
    """Scores by the first source; among attempts that it calls equal, by their place in the order of the next ones.

    What the later sources add is at most `step`, and less where scores of the first lie nearer together: it never turns
    around two attempts that an earlier source tells apart. What the first source did not score has no score; what a
    later one did not score stands in the middle of its equals.
    """

    class Config(Combiner.Config):
        """Settings of `tiers`."""

        sources: tuple[str, ...] = Field(min_length=1)
        """Names of verifiers and judges, the one that decides first in front, e.g. `[numeric_match, reward_model]`."""
        step: Annotated[float, Field(gt=0, le=0.5)] = 0.1
        """Share of [0, 1] within which later sources order what earlier ones leave equal: with 0.1, attempts that the
        first source scores 1 come to lie between 0.9 and 1, those that it scores 0 between 0 and 0.1."""

        def names(self) -> tuple[str, ...]:
            return self.sources

        def needs(self) -> tuple[str, ...]:
            return self.sources[:1]

        def refused_scores(self, sources: Mapping[str, bool]) -> str | None:
            return None

        def gives_raw(self, sources: Mapping[str, bool]) -> bool:
            return sources.get(self.sources[0], False)

    config: Config

    def decisive(self, scores: Scores, combined: float | None) -> float | None:
        """The first source's own score: what later ones add orders equals, and makes none of them right or wrong."""
        first = scores.get(self.config.sources[0])
        return None if first is None else first.score

    def combine(self, group: Sequence[Scores]) -> list[float | None]:
        first, *later = self.config.sources
        values = {i: scores[first].score for i, scores in enumerate(group) if first in scores}
        found: list[float | None] = [values.get(i) for i in range(len(group))]
        if not any(name in group[i] for i in values for name in later):
            return found
        levels = sorted(set(values.values()))
        gap = min((high - low for low, high in pairwise(levels)), default=1.0)
        raw = any(group[i][first].raw for i in values)
        # A value keeps its place as long as what is added stays below the nearest distance.
        step = min(self.config.step, gap / 2) if raw else min(self.config.step, gap / (2 + gap))
        for level in levels:
            equals = [i for i, value in values.items() if value == level]
            for i, place in _places(equals, group, later).items():
                found[i] = level + step * place if raw else (1 - step) * level + step * place
        return found


def _places(
    equals: Sequence[int], group: Sequence[Scores], sources: Sequence[str]
) -> dict[int, float]:
    """A place in [0, 1] for each of `equals`, by the next source, then within its equals by those after it."""
    if not sources or len(equals) == 1:
        return dict.fromkeys(equals, 0.5)
    source, *later = sources
    scored = {i: group[i][source].score for i in equals if source in group[i]}
    levels = sorted(set(scored.values()))
    places = dict.fromkeys(equals, 0.5)
    if len(levels) < 2:
        return _places(equals, group, later)
    # Each level has a band of its own; with nothing after it, the bands' middles are stretched to 0 and 1.
    for number, level in enumerate(levels):
        inner = _places([i for i in scored if scored[i] == level], group, later)
        for i, place in inner.items():
            places[i] = (number + place) / len(levels)
    ends = min(places[i] for i in scored), max(places[i] for i in scored)
    return {i: (p - ends[0]) / (ends[1] - ends[0]) if i in scored else p for i, p in places.items()}
