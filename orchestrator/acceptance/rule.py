"""The acceptance seam: keep a new policy or roll back to one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.acceptance.measurement import Evidence
from policies.base.component import Component, Family


@dataclass(frozen=True)
class Decision:
    """A decision: does the candidate serve from now on, and why."""

    accepted: bool
    reason: str
    back_to: int | None = None
    """After a rejection, the version that is to serve; None is the one that served."""
    best: int | None = None
    """The version that later candidates are compared with besides the serving one; its weights are kept."""


class AcceptanceRule(Component):
    """Decides after the evaluation of a candidate."""

    selects: ClassVar[bool] = True
    """The measurement decides which version serves: its score is too good then, so the last one is measured anew."""

    def __init__(self, config: Component.Config) -> None:
        self.config = config

    def measure_again(self, evidence: Evidence) -> tuple[int, ...]:
        """Versions that must be measured once more before a decision, the candidate's number among them or not."""
        return ()

    def decide(self, evidence: Evidence) -> Decision:
        """Compare the candidate's held-out measurement with those of the versions before it."""
        raise NotImplementedError


ACCEPTANCE = Family("acceptance rule", package="orchestrator.acceptance.rules", base=AcceptanceRule)
"""Acceptance rules, one file each."""
