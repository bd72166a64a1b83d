"""Every pair of trajectories whose scores differ by a margin, up to a cap per prompt."""

from __future__ import annotations

import random
from itertools import combinations
from typing import ClassVar

from pydantic import Field

from policies.base.bounds import MAX_COUNT, MAX_SCORE
from policies.base.records import ScoredGroup
from policies.examples.builder import Built, PreferenceBuilder, beats, out_of_range
from policies.examples.kinds import Example, PreferencePair
from policies.examples.pairs import count_without_contrast, pair_of


class AllPairs(PreferenceBuilder):
    """Makes all pairs over the margin and keeps a random choice of them when there are too many.

    Dropped: `all_right` and `all_wrong` count trajectories; `margin_below`, `cap`, `identical` and
    `prefix_differs` count pairs.
    """

    kind: ClassVar[type[Example]] = PreferencePair

    class Config(PreferenceBuilder.Config):
        """Settings of `all_pairs`."""

        margin: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Least difference of scores; equal scores never make a pair."""
        max_pairs_per_prompt: int | None = Field(default=16, ge=1, le=MAX_COUNT)
        """Most pairs from one prompt, chosen at random; null keeps all (they grow with the square of the group)."""

        def refused_scores(self, raw: bool) -> str | None:
            return out_of_range("margin", self.margin, raw=raw)

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the pairs of `group`."""
        built = Built()
        candidates = self.candidates(group, built)
        scores = [candidate.score for candidate in candidates]
        if not scores or not beats(max(scores), min(scores)):
            count_without_contrast(candidates, built, "margin_below")
            return built
        pairs: list[PreferencePair] = []
        for one, other in combinations(candidates, 2):
            chosen, rejected = (one, other) if one.score > other.score else (other, one)
            if not beats(chosen.score, rejected.score, self.config.margin):
                built.dropped["margin_below"] += 1
            elif (pair := pair_of(chosen, rejected, built)) is not None:
                pairs.append(pair)
        limit = self.config.max_pairs_per_prompt
        if limit is not None and len(pairs) > limit:
            built.dropped["cap"] += len(pairs) - limit
            kept = sorted(rng.sample(range(len(pairs)), limit))
            pairs = [pairs[i] for i in kept]
        built.examples.extend(pairs)
        return built
