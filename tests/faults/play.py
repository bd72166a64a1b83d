"""Plays one row of the fault matrix: break, go on to the end, prove whole, compare with peace."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from policies.storage.fake_model import write_fake_model
from tests.faults.fault import Fault
from tests.faults.inject_memory import can_limit_memory
from tests.faults.inject_ray import shared_cluster
from tests.faults.inject_surroundings import write_prompts
from tests.faults.scene import CommandServer, Peace, Scene


class Stage:
    """What all rows share: a process that forks drivers, the undisturbed runs, and a Ray cluster when one is needed."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.home, self._stack = home, stack
        home.mkdir(parents=True, exist_ok=True)
        self.command_server = stack.enter_context(CommandServer())
        self.peace = Peace(self.command_server, home)
        self._ray: dict[str, str] | None = None

    def scene(self, home: Path, fault: Fault, seed: int) -> Scene:
        """A scene for one row."""
        changes: dict[str, Any] = dict(fault.changes)
        env: dict[str, str] = {}
        if fault.needs == "prompts":
            path = self.home / "prompts.jsonl"
            write_prompts(path)
            own = {"train": {"type": "jsonl", "path": str(path)}, "allow_overlap": True}
            changes["prompts"] = {**changes.get("prompts", {}), **own}
            env["PAWL_FAULT_PROMPTS"] = str(path)
        if fault.needs == "ray":
            if self._ray is None:
                (self.home / "cluster").mkdir(exist_ok=True)
                self._ray = self._stack.enter_context(shared_cluster(self.home / "cluster"))
            env |= self._ray
        if fault.compares:
            scene = self.peace.disturbed(home, changes, seed)
        else:
            scene = Scene(self.command_server, home, self.peace.model, seed=seed, changes=changes)
        scene.env |= env
        if fault.needs == "model":
            scene.model = write_fake_model(home / "model", skill=0.3)
            scene.write_config(changes)
        return scene


def can_run(fault: Fault) -> bool:
    """Whether this machine lets the row happen."""
    if fault.needs == "sandbox":
        return shutil.which("bwrap") is not None
    if fault.needs == "memory group":
        return can_limit_memory()
    return fault.needs != "mount" or os.geteuid() == 0


def play(scene: Scene, fault: Fault, phase: str, *, again: bool = False) -> None:
    """Inject the fault, and when asked kill a driver that resumes; then prove that nothing was lost or doubled.

    Raises:
        AssertionError: something was, or the fault did not happen.
    """
    fault.inject(scene, phase)
    assert scene.num_fired > 0, "the fault did not happen: this would prove nothing"
    if again:
        scene.kill_at_operation(40)
    scene.finish()
    scene.check()
    if fault.compares:
        assert scene.state() == scene.calm_state(), "it ended, and differs from the undisturbed run"
