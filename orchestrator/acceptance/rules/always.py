"""Accept every policy that was published."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.acceptance.rule import AcceptanceRule, Decision


class Always(AcceptanceRule):
    """Keep going forward whatever the evaluation says."""

    def decide(self, candidate: Mapping[str, float], best: Mapping[str, float]) -> Decision:
        return Decision(accepted=True, reason="acceptance.type is always")
