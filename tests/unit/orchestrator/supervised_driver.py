"""A driver for the supervisor's tests: dies where a file says, one line per start; the rest is the real thing.

Usage: supervised_driver.py ENDS_FILE run RUN_DIR CONFIG_JSON | supervised_driver.py ENDS_FILE resume RUN_DIR
A line is `kill:ROUND:PHASE` (SIGKILL when the phase starts), `exit:CODE` (at once), or `go` (to the end).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from orchestrator.driver.supervise import obey_supervisor
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder


def main() -> int:
    ends, command, path = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    wanted, *left = ends.read_text().split() or ["go"]
    ends.write_text("\n".join(left))
    with ends.with_suffix(".log").open("a") as log:
        log.write(f"{command} {wanted}\n")
    kind, *rest = wanted.split(":")
    if kind == "exit":
        obey_supervisor(path)
        return int(rest[0])
    return drive(command, RunFolder(path), rest)


def drive(command: str, folder: RunFolder, killed_at: list[str]) -> int:
    """Run or resume, to the end or to the phase in which to die."""
    from orchestrator.cli.output import exit_code_of
    from orchestrator.config.run_config import RunConfig
    from orchestrator.driver.launch import resume_experiment, run_experiment
    from orchestrator.flow.stopping import ending_at_once

    def end(event: Event) -> None:
        at = [str(event.round), str(event.phase)]
        if event.kind is EventKind.PHASE_STARTED and at == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with ending_at_once():
            obey_supervisor(folder.path)
            if command == "resume":
                resume_experiment(folder, [end])
            else:
                config = RunConfig.model_validate(json.loads(Path(sys.argv[4]).read_text()))
                run_experiment(config, folder, source="", observers=[end])
    except BaseException as error:  # as the command does it
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
