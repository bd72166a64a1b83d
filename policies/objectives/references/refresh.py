"""Reference = the policy that the round starts from; its log-probs are the sampler's own."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.requirements import NOTHING, Requirements
from policies.objectives.reference import ReferencePart, ReferencePlan, ReferenceSchedule


class Refresh(ReferenceSchedule):
    """The newest accepted version: most published loops refresh so (iterative RPO, SPPO, multi-turn DPO)."""

    class Config(ReferenceSchedule.Config):
        """Settings of refresh."""

        def requires(self) -> Requirements:
            """No second model where the sampler's own log-probs are taken."""
            return super().requires() if self.logprobs == "recompute" else NOTHING

    def plan(self, served: Sequence[int]) -> ReferencePlan:
        return ReferencePlan(parts=(ReferencePart(version=served[-1], weight=1.0),))
