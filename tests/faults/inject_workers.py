"""Faults of the workers and of the user's own code: dead, hanging, raising, talking nonsense, diverging."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.runs.events import read_events
from tests.faults.scene import Moment, Scene

PLUGINS = Path(__file__).with_name("plugins.py")


def plugin(name: str, timeout_seconds: float = 20.0) -> dict[str, Any]:
    """Changes that make one function of `plugins.py` the only verifier."""
    return {"verifiers": [{"type": f"{PLUGINS}:{name}", "timeout_seconds": timeout_seconds}]}


def counts(scene: Scene, round_index: int = 1) -> dict[str, float]:
    """What the shards of a round counted, from the journal."""
    for line in scene.folder.journal.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if (entry["round"], entry["phase"]) == (round_index, "collect"):
            found: dict[str, float] = entry["result"]["counts"]
            return found
    raise AssertionError("round was not collected")


def results(scene: Scene) -> list[dict[str, Any]]:
    """The finished rounds."""
    lines = [json.loads(x) for x in scene.folder.journal.read_text(encoding="utf-8").splitlines()]
    return [line["result"] for line in lines if line["phase"] == "accept"]


def _error_verdicts(scene: Scene) -> float:
    sources = [v for k, v in counts(scene).items() if k.startswith("verify/sources/")]
    assert sources
    rows = counts(scene)
    return sum(
        v for k, v in rows.items() if k.startswith("verify/sources/") and k.endswith("/errors")
    )


def misbehaving_verifier(scene: Scene, phase: str) -> None:
    """A user's verifier fails on one question: error verdicts, counted, never a score; and the driver is killed too."""
    scene.kill_at(scene.moment_in(phase))
    scene.finish()
    assert _error_verdicts(scene) > 0, "the verifier never met its question"
    assert counts(scene)["prefer/unusable"] == _error_verdicts(scene)
    scene.hit()


def verifier_killed(scene: Scene, phase: str) -> None:
    """The verifier's process is killed from outside (SIGKILL, as by the OOM killer) while it works on a shard."""
    driver = scene.drive(Moment("phase_started", 1, phase, action="note"))
    driver.wait_until_fired()
    deadline = time.monotonic() + 30
    while not (child := children_of(driver.pid)) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(scene.random.uniform(0.0, 0.2))
    os.kill(child[0], signal.SIGKILL)
    scene.hit()
    assert driver.wait() == 0, driver.text[-3000:]


def verifier_stopped(scene: Scene, phase: str) -> None:
    """The verifier's process is frozen (SIGSTOP): its timeout ends the wait and another process takes over."""
    driver = scene.drive(Moment("phase_started", 1, phase, action="note"))
    driver.wait_until_fired()
    while not (child := children_of(driver.pid)):
        assert driver.poll(0.01) is None
    os.kill(child[0], signal.SIGSTOP)
    scene.hit()
    assert driver.wait() == 0, driver.text[-3000:]


def children_of(parent: int) -> list[int]:
    """Child processes of a driver."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(path.name))
    return found


def all_the_same(scene: Scene, phase: str) -> None:
    """Every sample is right (or wrong): no pairs; rounds end without an update and the run with the reason."""
    scene.kill_at(scene.moment_in(phase))
    driver = scene.finish()
    assert {r["status"] for r in results(scene)} == {"untrained", "skipped"}
    assert {r["after"] for r in results(scene)} == {0}, "the policy is what it was"
    assert "examples" in driver.text
    scene.hit()


def prompts_too_long(scene: Scene, phase: str) -> None:
    """Some prompts do not fit the model: error trajectories, counted."""
    scene.kill_at(scene.moment_in(phase))
    scene.finish()
    assert counts(scene)["rollout/errors"] > 0
    scene.hit()


def diverges(scene: Scene, phase: str) -> None:
    """The loss becomes NaN in round 1: nothing of it is published, the last good policy serves, round 2 goes on."""
    scene.kill_at(scene.moment_in(phase))
    scene.finish()
    first = results(scene)[1]
    assert (first["before"], first["after"]) == (0, 0)
    assert first["status"] not in ("improved", "kept")
    assert "nan" in json.dumps(first).lower() or "finite" in json.dumps(first).lower(), first
    assert results(scene)[2]["after"] != 0, "the next round trains again"
    scene.hit()


def rolled_back(scene: Scene, phase: str) -> None:
    """A worse policy is refused by the gate: the round is rolled back, the old version serves."""
    scene.kill_at(scene.moment_in(phase))
    scene.finish()
    assert "rejected" in {r["status"] for r in results(scene)}
    scene.hit()


def warnings_of(scene: Scene) -> list[str]:
    """Warnings in the event log."""
    events = read_events(scene.folder.events)
    return [str(e.detail.get("message", "")) for e in events if e.kind.value == "warning"]
