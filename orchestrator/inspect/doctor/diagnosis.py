"""The words of `pawl doctor`: a finding, and all findings about one target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["problem", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. Example: `Finding("problem", "the driver is gone", "process 71", "pawl resume x")`."""

    severity: Severity
    what: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """All that was found about a run, or about a config on this machine."""

    target: str
    summary: str
    """What was looked at, and how it stands."""
    findings: Sequence[Finding]

    @property
    def healthy(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """The diagnosis for scripts."""
        return {
            "target": self.target,
            "summary": self.summary,
            "healthy": self.healthy,
            "findings": [asdict(finding) for finding in self.findings],
        }
