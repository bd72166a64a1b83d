"""Single trajectories, desirable above a threshold and undesirable below another: the KTO family's examples."""

from __future__ import annotations

import random
from typing import ClassVar, Self

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COUNT, Score
from policies.base.records import ScoredGroup
from policies.examples.builder import Built, PreferenceBuilder, out_of_range, unset_for_raw
from policies.examples.kinds import Example, TokenSequence, UnpairedExample


class Thresholded(PreferenceBuilder):
    """Needs no contrast within a prompt: prompts that are all right or all wrong give examples too.
    Examples carry the labels of the steps that a step-level verifier or judge scored.

    Dropped, all counting trajectories: `between_thresholds`, `cap`.
    """

    kind: ClassVar[type[Example]] = UnpairedExample

    class Config(PreferenceBuilder.Config):
        """Settings of `thresholded`."""

        threshold: Score = 0.5
        """Lowest score of a desirable example."""
        low_threshold: Score | None = None
        """Highest score of an undesirable example; null takes everything below `threshold`."""
        max_per_class: int | None = Field(default=None, ge=1, le=MAX_COUNT)
        """Most desirable and most undesirable examples from one prompt, chosen at random: keeps both sides even."""
        max_per_prompt: int | None = Field(default=None, ge=1, le=MAX_COUNT)
        """Most examples from one prompt, chosen at random after `max_per_class`."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low_threshold is not None and self.low_threshold > self.threshold:
                raise ValueError(
                    f"low_threshold ({self.low_threshold}) must not be above threshold ({self.threshold})"
                )
            return self

        def refused_scores(self, raw: bool) -> str | None:
            unset = unset_for_raw(self, "threshold", raw=raw)
            return (
                unset
                or out_of_range("threshold", self.threshold, raw=raw)
                or out_of_range("low_threshold", self.low_threshold, raw=raw)
            )

    config: Config

    def build(self, group: ScoredGroup, rng: random.Random) -> Built:
        """Return the examples of `group`, in the order of its trajectories."""
        built = Built()
        sides: dict[bool, list[UnpairedExample]] = {True: [], False: []}
        order: dict[str, int] = {}
        for candidate in self.candidates(group, built):
            desirable = self._side(candidate.score)
            if desirable is None:
                built.dropped["between_thresholds"] += 1
                continue
            if desirable and candidate.unfit_to_win is not None:
                built.dropped[candidate.unfit_to_win] += 1
                continue
            trajectory = candidate.trajectory
            order[trajectory.id] = len(order)
            sides[desirable].append(
                UnpairedExample(
                    id=trajectory.id,
                    prompt_id=trajectory.prompt_id,
                    sequence=TokenSequence.of(trajectory, candidate.feedback),
                    desirable=desirable,
                    score=candidate.score,
                )
            )
        kept = [
            e for side in sides.values() for e in _some(side, self.config.max_per_class, rng, built)
        ]
        kept = _some(kept, self.config.max_per_prompt, rng, built)
        built.examples.extend(sorted(kept, key=lambda example: order[example.id]))
        return built

    def _side(self, score: float) -> bool | None:
        if score >= self.config.threshold:
            return True
        low = self.config.low_threshold
        return False if low is None or score <= low else None


def _some(
    examples: list[UnpairedExample], limit: int | None, rng: random.Random, built: Built
) -> list[UnpairedExample]:
    if limit is None or len(examples) <= limit:
        return examples
    built.dropped["cap"] += len(examples) - limit
    return rng.sample(examples, limit)
