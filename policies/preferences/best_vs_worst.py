"""One pair per prompt: the best trajectory over the worst, when their scores are far enough apart."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from policies.examples import ExampleKind
from policies.pairs import count_without_contrast, pair_of
from policies.preference import Built, Candidate, PreferenceBuilder
from policies.records import ScoredGroup


class BestVsWorst(PreferenceBuilder):
    """Takes the two ends of the scores; among equals the shortest, so that length is never rewarded by chance.

    Dropped, all counting trajectories: `all_right` / `all_wrong` / `margin_below` when there is no pair,
    `between` for those that are neither best nor worst.
    """

    kind: ClassVar[ExampleKind] = "pair"

    class Config(PreferenceBuilder.Config):
        """Settings of `best_vs_worst`."""

        margin: float = Field(default=0.0, ge=0, le=1)
        """Least difference of scores; equal scores never make a pair."""

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the pair of `group`, if it has one. Draws nothing from `rng`."""
        built = Built()
        candidates = self.candidates(group, built)
        if not candidates:
            return built
        fit = [c for c in candidates if c.unfit_to_win is None]
        best = min(fit or candidates, key=lambda c: (-c.score, *_length_then_index(c)))
        worst = min(candidates, key=lambda c: (c.score, *_length_then_index(c)))
        difference = best.score - worst.score
        if difference <= 0:
            count_without_contrast(candidates, built, "margin_below")
        elif difference < self.config.margin:
            built.dropped["margin_below"] += len(candidates)
        elif (pair := pair_of(best, worst, built)) is not None:
            built.examples.append(pair)
            if len(candidates) > 2:
                built.dropped["between"] += len(candidates) - 2
        return built


def _length_then_index(candidate: Candidate) -> tuple[int, int, str]:
    trajectory = candidate.trajectory
    return trajectory.num_policy_tokens, trajectory.sample_index, trajectory.id
