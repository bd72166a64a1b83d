"""Accept a policy whose held-out metric is better than that of the policy that serves now; else roll back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pydantic import Field

from orchestrator.acceptance.rule import AcceptanceRule, Decision
from policies.component import Component


class IfBetter(AcceptanceRule):
    """Compares one metric, higher being better."""

    class Config(Component.Config):
        """Settings of the comparison."""

        metric: str = "eval/pass@1"
        """Name of the held-out metric that decides."""
        margin: float = Field(default=0.0)
        """The candidate must reach the serving policy's value plus this. Negative allows a small loss."""

    def decide(self, candidate: Mapping[str, float], best: Mapping[str, float]) -> Decision:
        config = cast(IfBetter.Config, self.config)
        new, old = candidate.get(config.metric), best.get(config.metric)
        if new is None or old is None:
            known = ", ".join(sorted(candidate))
            return Decision(
                False, f"no {config.metric} to compare (measured: {known}); see acceptance.metric"
            )
        accepted = new >= old + config.margin
        sign = ">=" if accepted else "<"
        return Decision(
            accepted, f"{config.metric} {new:.4f} {sign} {old:.4f} + margin {config.margin:g}"
        )
