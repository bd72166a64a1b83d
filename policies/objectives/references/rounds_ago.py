"""Reference = the policy that served some rounds before the newest: between refresh and initial."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from policies.base.bounds import MAX_ROUNDS
from policies.objectives.reference import ReferencePart, ReferencePlan, ReferenceSchedule


class RoundsAgo(ReferenceSchedule):
    """The version accepted `rounds` rounds before the newest; the initial one while there are too few rounds."""

    class Config(ReferenceSchedule.Config):
        """Settings of rounds_ago."""

        rounds: int = Field(default=2, ge=1, le=MAX_ROUNDS)
        """How many rounds before the newest accepted policy; 1 is the start of the previous round."""

    config: Config

    def plan(self, served: Sequence[int]) -> ReferencePlan:
        version = served[max(0, len(served) - 1 - self.config.rounds)]
        return ReferencePlan(parts=(ReferencePart(version=version, weight=1.0),))
