"""A driver process for the resume tests: runs or resumes one run, and kills itself where it is told to.

Usage: driver.py RUN_DIR CONFIG_JSON MOMENT, or driver.py --serve: one JSON list [RUN_DIR, CONFIG_JSON, MOMENT, LOG] per
line on stdin, each driven by a fork of a process that has imported everything, its exit code per line on stdout.
MOMENT: `never`, `start:ROUND:PHASE`, `journal:ROUND:PHASE` (work done, not yet journalled),
`finished:ROUND:PHASE` (journalled), or `stage:ROUND:NAME:N` (the Nth time a shard leaves stage NAME).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
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


def drive(run_dir: str, config_path: str, moment: str) -> None:
    """Run or resume, with a fault at the moment."""
    folder = RunFolder(Path(run_dir))
    if moment.startswith("journal"):
        KillingJournal.moment = moment
        assembly.Journal = KillingJournal  # type: ignore[attr-defined]
    observers = [Killer(moment)]
    if folder.identity.exists():
        resume_experiment(folder, observers)
    else:
        config = RunConfig.model_validate(json.loads(Path(config_path).read_text(encoding="utf-8")))
        run_experiment(config, folder, source="", observers=observers)


def serve() -> None:
    """Answer until stdin ends: the start of an interpreter takes longer than one of these runs."""
    from tests.faults.command_server import (
        WARM,
    )  # not needed, and not found, where one driver is started

    for name in WARM:
        importlib.import_module(name)
    for line in sys.stdin:
        run_dir, config_path, moment, log = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(log)
            code = 1
            try:
                drive(run_dir, config_path, moment)
                code = 0
            except BaseException:  # the parent sees only the code
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(log: str) -> None:
    """A process of its own, which reads nothing and writes to the log."""
    os.setsid()
    nothing, told = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(nothing, 0)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.close(nothing)
    os.close(told)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        drive(*sys.argv[1:4])
