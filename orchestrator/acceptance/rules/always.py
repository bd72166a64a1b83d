"""Accept every policy that was published."""

from __future__ import annotations

from typing import ClassVar

from orchestrator.acceptance.measurement import Evidence
from orchestrator.acceptance.rule import AcceptanceRule, Decision


class Always(AcceptanceRule):
    """Keep going forward whatever the evaluation says."""

    selects: ClassVar[bool] = False

    def decide(self, evidence: Evidence) -> Decision:
        return Decision(accepted=True, reason="acceptance.type is always")
