"""Pairs of a revision over the attempt that it revises, where it is the better one."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from policies.base.bounds import MAX_SCORE
from policies.base.records import ScoredGroup
from policies.base.requirements import Requirements
from policies.examples.builder import Built, PreferenceBuilder, beats
from policies.examples.kinds import Example, PreferencePair
from policies.examples.pairs import pair_of


class Revisions(PreferenceBuilder):
    """Pairs each revision with its origin: both answer the same prompt tokens, and differ in what was changed.

    The verdicts decide: a revision that is not better by the margin makes no pair. Dropped: `not_revised` and
    `without_origin` (its origin failed or has no score) count trajectories; `not_better`, `identical`,
    `duplicate` and `prefix_differs` count pairs.
    """

    kind: ClassVar[type[Example]] = PreferencePair

    class Config(PreferenceBuilder.Config):
        """Settings of `revisions`."""

        margin: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Least rise of the score; equal scores never make a pair."""

        def requires(self) -> Requirements:
            """Attempts that revise others."""
            return super().requires() + Requirements(revisions=True)

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the pairs of `group`, in the order of its revisions."""
        built = Built()
        # Two revisions may say the same of different answers: what is the same twice is found among pairs.
        candidates = self.candidates(group, built, keep_duplicates=True)
        seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        by_id = {candidate.trajectory.id: candidate for candidate in candidates}
        revised = {c.trajectory.derived_from for c in candidates}
        for candidate in candidates:
            origin_id = candidate.trajectory.derived_from
            if origin_id is None:
                built.dropped["not_revised"] += candidate.trajectory.id not in revised
                continue
            origin = by_id.get(origin_id)
            if origin is None:
                built.dropped["without_origin"] += 1
            elif not beats(candidate.score, origin.score, self.config.margin):
                built.dropped["not_better"] += 1
            elif (pair := pair_of(candidate, origin, built)) is not None:
                sides = (pair.chosen.token_ids, pair.rejected.token_ids)
                if sides in seen and not self.config.keep_duplicates:
                    built.dropped["duplicate"] += 1
                    continue
                seen.add(sides)
                built.examples.append(pair)
        built.dropped += type(built.dropped)()  # leaves out reasons that were counted 0 times
        return built
