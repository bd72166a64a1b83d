"""What `pawl doctor` finds: one finding per thing that is wrong, with its evidence and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.run_folder import RunFolder

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


def diagnose(target: str, overrides: Sequence[str] = ()) -> Diagnosis:
    """Look at a run folder, or at a config and the machine it would run on. Starts and changes nothing.

    Raises:
        ConfigurationError: `target` is neither a run folder nor a config that can be loaded.
    """
    folder = RunFolder(Path(target).resolve())
    if folder.identity.exists():
        from orchestrator.doctor_run import examine_run

        return examine_run(folder)
    from orchestrator.doctor_machine import examine_machine

    return examine_machine(target, overrides)
