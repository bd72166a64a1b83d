"""Faults of what judges: sandboxes whose owner is killed or that cannot start, and judges without a verdict."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

from policies.base.process_identity import process_start
from tests.faults.fault import Fault
from tests.faults.inject_workers import PLUGINS, children_of, counts, plugin
from tests.faults.scene import Moment, Scene

_CODE = {
    **plugin("RunsCode", 60.0),
    "prompts": {"per_round": 3},
    "rollout": {"engine": {"type": "fake"}, "samples_per_prompt": 2},
}
_CONTAINED = {**_CODE, "verifiers": [{"type": f"{PLUGINS}:RunsCode", "backend": "bwrap"}]}


def _judged_by(rule: str) -> dict[str, Any]:
    backend = {"type": "fake", "rule": rule}
    return {
        "verifiers": [],
        "judges": [{"type": "rubric", "backend": backend}],
        "limits": {"max_verdict_errors": 1.0},
        "evaluation": {"samples_per_prompt": 2, "verifiers": [{"type": "numeric_match"}]},
    }


def killed_while_code_runs(victim: Literal["verifier", "driver"]) -> Callable[[Scene, str], None]:
    """SIGKILL to a verifier's process, or to the driver, with sandboxes open: nothing that ran in them goes on."""

    def inject(scene: Scene, phase: str) -> None:
        driver = scene.drive(Moment("phase_started", 1, phase, action="note"))
        driver.wait_until_fired()
        deadline = time.monotonic() + 60
        while len(contained := _grandchildren(driver.pid)) < 3:  # keeper, wrapper, interpreter
            assert time.monotonic() < deadline, driver.text[-3000:]
            assert driver.poll(0.005) is None, driver.text[-3000:]
        time.sleep(scene.random.uniform(0.0, 0.2))
        contained |= _grandchildren(driver.pid)
        os.kill(children_of(driver.pid)[0] if victim == "verifier" else driver.pid, signal.SIGKILL)
        scene.hit()
        while left := {pid for pid, started in contained if process_start(pid) == started}:
            assert time.monotonic() < deadline, f"{left} of {contained} go on"
            time.sleep(0.02)
        assert driver.wait() == (0 if victim == "verifier" else -signal.SIGKILL), driver.text[
            -3000:
        ]

    return inject


def _grandchildren(parent: int) -> set[tuple[int, int]]:
    """Process number and start time of whatever the children of a driver have started, however deep."""
    found: set[tuple[int, int]] = set()
    layer = children_of(parent)
    while layer:
        layer = [pid for above in layer for pid in children_of(above)]
        found |= {(pid, started) for pid in layer if (started := process_start(pid)) is not None}
    return found


def nothing_contains_code(scene: Scene, phase: str) -> None:
    """The sandbox cannot start on this machine: no code runs without it; with it, the run goes on."""
    scene.kill_at(scene.moment_in(phase))
    scene.refused(1, "bwrap is not installed", env={"PATH": "/nowhere"})
    scene.hit()


def judge_without_a_verdict(scene: Scene, phase: str) -> None:
    """The judge answers with rubbish, or not at all: counted as errors, the trajectories unusable, none called bad."""
    scene.kill_at(scene.moment_in(phase))
    scene.finish()
    assert counts(scene)["prefer/undesirable"] + counts(scene)["prefer/desirable"] == 0
    assert counts(scene)["prefer/unusable"] == counts(scene)["rollout/trajectories"]
    scene.hit()


ROWS = (
    Fault(
        "verifier killed while code runs",
        ("collect", "evaluate"),
        killed_while_code_runs("verifier"),
        "nothing of the sandbox goes on, same verdicts",
        _CODE,
        needs="sandbox",
        short=False,
    ),
    Fault(
        "driver killed while code runs",
        ("collect",),
        killed_while_code_runs("driver"),
        "nothing of the sandbox goes on, resumes",
        _CODE,
        needs="sandbox",
        short=False,
    ),
    Fault(
        "nothing contains code",
        ("collect",),
        nothing_contains_code,
        "refused with the remedy",
        _CONTAINED,
        needs="sandbox",
        short=False,
    ),
    Fault(
        "judge talks nonsense",
        ("collect",),
        judge_without_a_verdict,
        "error verdicts, counted, nobody is bad",
        _judged_by("garbage"),
        short=False,
    ),
    Fault(
        "judge fails",
        ("collect",),
        judge_without_a_verdict,
        "error verdicts, counted, nobody is bad",
        _judged_by("error"),
        short=False,
    ),
)
"""The rows of the table that need a sandbox or a judge."""
