"""The record of an audit of a run folder: what it claims, what it looked at, and what it found wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_PROBLEMS = 20
"""Problems of one check that are kept with their text; the rest is counted."""

CLAIMS = {
    "identity": "run.json and config.json can be read and belong together",
    "journal": "every line is whole; phases and rounds are in order, none twice",
    "files": "every marker and manifest has its file, with its sha256, size and rows",
    "content": "every row reads back and adds up to the content digest of its marker",
    "complete": "a finished phase has every file of every shard",
    "digests": "the journal's digests equal the files'",
    "inputs": "every file was made from the files that lie beside it",
    "plug-ins": "all shards of a round were made with the same code of plug-ins, and every change was accepted",
    "ids": "ids are unique per round and kind",
    "sources": "verdicts, feedback and examples are about trajectories of their shard, those about its prompts",
    "samplers": "trajectories and examples come from the round's policies",
    "counts": "prompts x samples = trajectories, and every count of the journal adds up",
    "epochs": "every driver claimed the run once, in an epoch of its own that is one above the last",
    "lineage": "every policy has its parent, and each round starts from the version that the last one left",
    "reference": "the reference that was trained on is the schedule's, and was published before its round",
    "training": "the update saw the round's examples, and its log has each step once",
    "committed": "nothing unfinished lies in a finished round",
    "quarantine": "whatever was set aside has its reason beside it",
    "logs": "the logs and caches that decide nothing read back; what is damaged of them, or foreign, is a note",
}
"""Every check, in the order in which it is printed."""


@dataclass
class Check:
    """One claim about a run folder. Example: `Check("ids", "ids are unique ...", num_examined=96)`."""

    name: str
    claim: str
    num_examined: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and no fault: leftovers that a resume removes, what could not be checked."""

    def expect(self, holds: bool, problem: str) -> bool:
        """Count one thing that was looked at; remember `problem` when it does not hold."""
        self.num_examined += 1
        if not holds:
            self.fail(problem)
        return holds

    def fail(self, problem: str) -> None:
        """Remember a problem."""
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    @property
    def verdict(self) -> str:
        """`ok`, `wrong`, or `nothing` when there was nothing to look at."""
        if self.num_problems:
            return "wrong"
        return "ok" if self.num_examined else "nothing"


class Report:
    """The checks of one audit, by name."""

    def __init__(self) -> None:
        self._checks = {name: Check(name, claim) for name, claim in CLAIMS.items()}

    def __getitem__(self, name: str) -> Check:
        return self._checks[name]

    def __iter__(self) -> Iterator[Check]:
        return iter(self._checks.values())

    @property
    def num_problems(self) -> int:
        return sum(check.num_problems for check in self)

    def to_json(self) -> dict[str, Any]:
        """Return what `pawl verify --json` prints under `checks`."""
        return {
            check.name: {
                "claim": check.claim,
                "verdict": check.verdict,
                "examined": check.num_examined,
                "num_problems": check.num_problems,
                "problems": check.problems,
                "notes": check.notes,
            }
            for check in self
        }
