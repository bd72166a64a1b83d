"""The acceptance seam: keep a new policy or roll back to the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.component import Component, Family


@dataclass(frozen=True)
class Decision:
    """Whether the candidate serves from now on, and why."""

    accepted: bool
    reason: str


class AcceptanceRule(Component):
    """Decides after the evaluation of a candidate."""

    def __init__(self, config: Component.Config) -> None:
        self.config = config

    def decide(self, candidate: Mapping[str, float], best: Mapping[str, float]) -> Decision:
        """Compare the candidate's held-out metrics with those of the policy that serves now."""
        raise NotImplementedError


ACCEPTANCE = Family("acceptance rule", package="orchestrator.acceptance.rules", base=AcceptanceRule)
