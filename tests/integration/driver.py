"""A driver process for the resume tests: runs or resumes one run, and kills itself where it is told to.

Usage: driver.py RUN_DIR CONFIG_JSON MOMENT
MOMENT: `never`, `start:ROUND:PHASE`, `journal:ROUND:PHASE` (work done, not yet journalled),
`finished:ROUND:PHASE` (journalled), or `stage:ROUND:NAME:N` (the Nth time a shard leaves stage NAME).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from orchestrator.config.run_config import RunConfig
from orchestrator.driver import assembly
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase
from policies.base.records import Record


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """An observer that ends the process at one event."""

    def __init__(self, moment: str) -> None:
        self.kind, *self.rest = moment.split(":")
        self.seen = 0

    def __call__(self, event: Event) -> None:
        at = [str(event.round), str(event.phase)]
        if self.kind == "start" and event.kind is EventKind.PHASE_STARTED and at == self.rest:
            die()
        if self.kind == "finished" and event.kind is EventKind.PHASE_FINISHED and at == self.rest:
            die()
        if self.kind == "stage" and event.kind is EventKind.SHARD_STAGE_FINISHED:
            self.seen += [str(event.round), str(event.detail["stage"])] == self.rest[:2]
            if self.seen == int(self.rest[2]):
                die()


class KillingJournal(Journal):
    """Ends the process right before one phase would be journalled."""

    moment = "never"

    def append(self, round_index: int, phase: Phase, result: Record) -> None:
        if self.moment == f"journal:{round_index}:{phase.value}":
            die()
        super().append(round_index, phase, result)


def main() -> None:
    folder, config_path, moment = RunFolder(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    if moment.startswith("journal"):
        KillingJournal.moment = moment
        assembly.Journal = KillingJournal  # type: ignore[attr-defined]
    observers = [Killer(moment)]
    if folder.identity.exists():
        resume_experiment(folder, observers)
    else:
        config = RunConfig.model_validate(json.loads(config_path.read_text(encoding="utf-8")))
        run_experiment(config, folder, source="", observers=observers)


if __name__ == "__main__":
    main()
