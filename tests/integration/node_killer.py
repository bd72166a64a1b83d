"""A driver process that kills the node on which one of its workers runs, in the middle of the work.

Usage: node_killer.py RUN_DIR CONFIG_JSON RAYLETS_JSON ROLE WHEN: when event WHEN (`phase_started` or
`shard_stage_finished`, in round 1 and the phase of ROLE) happens, every process of the node that hosts
actor 0 of ROLE is killed. Prints what it did and how long the run stood still afterwards, as one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder

PHASE_OF = {"rollout": "collect", "train": "train"}


def node_of(role: str) -> str:
    """The node of actor 0 of a group, from Ray's own table."""
    from ray._private.state import actors

    for actor in actors().values():
        if actor["State"] == "ALIVE" and f"/{role}/0" in actor["Name"]:
            node: str = actor["Address"]["NodeID"]
            return node
    raise AssertionError(f"no actor of {role} is alive")


def kill_node(raylet: int) -> int:
    """SIGKILL a raylet and everything it started; returns how many processes that were."""
    processes = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    return len(processes)


class NodeKiller:
    """An observer that kills one node once, and measures what that cost."""

    def __init__(self, raylets: dict[str, int], role: str, when: str) -> None:
        self.raylets, self.role, self.when = raylets, role, when
        self.killed = 0
        self.at = 0.0
        self.noticed_after: float | None = None
        self.lines: list[str] = []

    def __call__(self, event: Event) -> None:
        if self.killed and event.kind is EventKind.WARNING:
            self.lines.append(str(event.detail["message"])[:300])
            if self.noticed_after is None:
                self.noticed_after = time.monotonic() - self.at
        if self.killed or self.when == "never":
            return
        if (event.round, event.phase, event.kind.value) == (1, PHASE_OF[self.role], self.when):
            self.killed = kill_node(self.raylets[node_of(self.role)])
            self.at = time.monotonic()


def main() -> None:
    folder, config_path, raylets = RunFolder(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    killer = NodeKiller(json.loads(raylets), sys.argv[4], sys.argv[5])
    started = time.monotonic()
    config = RunConfig.model_validate(json.loads(config_path.read_text(encoding="utf-8")))
    run_experiment(config, folder, source="", observers=[killer])
    found = {
        "seconds": round(time.monotonic() - started, 1),
        "killed": killer.killed,
        "noticed_after": killer.noticed_after,
        "warnings": killer.lines,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
