"""One pair per prompt: a best trajectory over a worst, when their scores are far enough apart."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from policies.base.bounds import MAX_SCORE
from policies.base.records import ScoredGroup
from policies.examples.builder import Built, PreferenceBuilder, beats, out_of_range
from policies.examples.kinds import Example, PreferencePair
from policies.examples.pairs import count_without_contrast, pair_of


class BestVsWorst(PreferenceBuilder):
    """Takes the two ends of the scores; among equals each has the same chance.

    A rule such as "the shorter one" would teach length: among seven equals the shortest is far below their mean, and
    the side with more equals would be the short one.

    Dropped, all counting trajectories: `all_right` / `all_wrong` / `margin_below` when there is no pair,
    `between` for those that are neither best nor worst.
    """

    kind: ClassVar[type[Example]] = PreferencePair

    class Config(PreferenceBuilder.Config):
        """Settings of `best_vs_worst`."""

        margin: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Least difference of scores; equal scores never make a pair."""

        def refused_scores(self, raw: bool) -> str | None:
            return out_of_range("margin", self.margin, raw=raw)

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the pair of `group`, if it has one."""
        built = Built()
        candidates = self.candidates(group, built)
        if not candidates:
            return built
        fit = [c for c in candidates if c.unfit_to_win is None]
        highest = max(c.score for c in fit or candidates)
        lowest = min(c.score for c in candidates)
        best = rng.choice([c for c in fit or candidates if not beats(highest, c.score)])
        worst = rng.choice([c for c in candidates if not beats(c.score, lowest)])
        if not beats(best.score, worst.score):
            count_without_contrast(candidates, built, "margin_below")
        elif not beats(best.score, worst.score, self.config.margin):
            built.dropped["margin_below"] += len(candidates)
        elif (pair := pair_of(best, worst, built)) is not None:
            built.examples.append(pair)
            if len(candidates) > 2:
                built.dropped["between"] += len(candidates) - 2
        return built
