"""Reference = the model the run started from, in every round: bounds the total drift, learns more slowly."""

from __future__ import annotations

from collections.abc import Sequence

from policies.objectives.reference import ReferencePart, ReferencePlan, ReferenceSchedule


class Initial(ReferenceSchedule):
    """The version of round 0."""

    def plan(self, served: Sequence[int]) -> ReferencePlan:
        return ReferencePlan(parts=(ReferencePart(version=served[0], weight=1.0),))
