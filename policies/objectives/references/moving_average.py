"""Reference = an exponential moving average of the weights that served (the soft update of TR-DPO, once a round)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from policies.objectives.reference import ReferencePart, ReferencePlan, ReferenceSchedule

SMALLEST_WEIGHT = 0.01
"""Parts below this share are left out: each costs reading a whole checkpoint, and moves the average by under 1 %."""


class MovingAverage(ReferenceSchedule):
    """ref_t = alpha theta_t + (1 - alpha) ref_(t-1), ref_0 = theta_0 (arXiv 2404.09656), written as one weighted sum.

    The closed form needs only published versions, so a resumed run gets the same reference without stored state.
    Served [0, 1, 2] with alpha 0.6 give 0.16, 0.24 and 0.6. A round that was rolled back serves its old version
    again, which then counts twice.
    """

    class Config(ReferenceSchedule.Config):
        """Settings of moving_average."""

        alpha: float = Field(default=0.6, gt=0, le=1)
        """Share of the newest version; 1 is the same as refresh."""

    config: Config

    def plan(self, served: Sequence[int]) -> ReferencePlan:
        alpha, newest = self.config.alpha, len(served) - 1
        weights: dict[int, float] = {}
        for age, version in enumerate(reversed(served)):
            share = (1 - alpha) ** age * (1.0 if age == newest else alpha)
            weights[version] = weights.get(version, 0.0) + share
        largest = max(weights.values())
        kept = {v: w for v, w in weights.items() if w >= SMALLEST_WEIGHT or w == largest}
        total = sum(kept.values())
        parts = tuple(ReferencePart(version=v, weight=w / total) for v, w in sorted(kept.items()))
        return ReferencePlan(parts=parts)
