"""Rejection sampling: the trajectories that are good enough, to be imitated."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from policies.base.bounds import MAX_COUNT, Score
from policies.base.records import ScoredGroup
from policies.examples.builder import (
    Built,
    Candidate,
    PreferenceBuilder,
    out_of_range,
    unset_for_raw,
)
from policies.examples.kinds import Example, SupervisedExample, TokenSequence


class Imitate(PreferenceBuilder):
    """Keeps some of the best-scored trajectories of every prompt as they are, for supervised fine-tuning.

    The filter of rejection-sampling fine-tuning (Yuan et al., arXiv 2308.01825): right and different. Also what
    turns demonstrations into examples. Dropped, all counting trajectories: `below_threshold`, `cap`.
    """

    kind: ClassVar[type[Example]] = SupervisedExample

    class Config(PreferenceBuilder.Config):
        """Settings of `imitate`."""

        threshold: Score = 0.5
        """Lowest score of a trajectory that is imitated."""
        max_per_prompt: int | None = Field(default=4, ge=1, le=MAX_COUNT)
        """Most examples from one prompt, chosen at random: easy prompts must not rule the update. Null keeps all."""

        def refused_scores(self, raw: bool) -> str | None:
            unset = unset_for_raw(self, "threshold", raw=raw)
            return unset or out_of_range("threshold", self.threshold, raw=raw)

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the examples of `group`, in the order of its trajectories."""
        built = Built()
        good: list[Candidate] = []
        for candidate in self.candidates(group, built):
            if candidate.score < self.config.threshold:
                built.dropped["below_threshold"] += 1
            elif candidate.unfit_to_win is not None:
                built.dropped[candidate.unfit_to_win] += 1
            else:
                good.append(candidate)
        limit = self.config.max_per_prompt
        if limit is not None and len(good) > limit:
            built.dropped["cap"] += len(good) - limit
            good = [good[i] for i in sorted(rng.sample(range(len(good)), limit))]
        built.examples.extend(
            SupervisedExample(
                id=candidate.trajectory.id,
                prompt_id=candidate.trajectory.prompt_id,
                sequence=TokenSequence.of(candidate.trajectory, candidate.feedback),
            )
            for candidate in good
        )
        return built
