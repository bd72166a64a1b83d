"""The lines of a preflight: what was looked at, what was found, and whether a run can start with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from policies.base.errors import ConfigurationError

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class PlanLine:
    """One thing that was looked at."""

    what: str
    found: str
    verdict: Verdict = "ok"


@dataclass
class Plan:
    """All that the preflight found."""

    lines: list[PlanLine] = field(default_factory=list)

    def add(self, what: str, found: str, verdict: Verdict = "ok") -> None:
        """Append a line."""
        self.lines.append(PlanLine(what, found, verdict))

    def of(self, verdict: Verdict) -> list[PlanLine]:
        """The lines with this verdict."""
        return [line for line in self.lines if line.verdict == verdict]

    @property
    def fits(self) -> bool:
        return not self.of("problem")

    def to_json(self) -> dict[str, Any]:
        """The plan for scripts."""
        return {"fits": self.fits, "lines": [asdict(line) for line in self.lines]}


def refuse_what_cannot_run(plan: Plan) -> None:
    """Stop before anything is written.

    Raises:
        ConfigurationError: the plan has problems; all of them are listed.
    """
    problems = plan.of("problem")
    if problems:
        raise ConfigurationError("\n".join(f"{p.what}: {p.found}" for p in problems))
