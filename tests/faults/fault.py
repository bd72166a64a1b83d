"""What a row of the fault matrix is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.faults.scene import Scene

Inject = Callable[[Scene, str], None]
WORK = ("collect", "train", "evaluate")
"""Phases that take time."""


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    phases: tuple[str, ...]
    """Phases in which it is tried; the short form of the suite takes one of them, by seed."""
    inject: Inject
    expected: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Over the small config of `scene.small_config`."""
    needs: Literal[
        "", "mount", "mlflow", "ray", "own ray", "memory group", "prompts", "model", "sandbox"
    ] = ""
    """`mount`: root that may mount; `memory group`: root with a memory controller, for a cluster of its own;
    `prompts`: a prompt file; `model`: a starting model of its own; `sandbox`: bubblewrap."""
    short: bool = True
    """Part of the short form; the others take long."""
    compares: bool = True
    """With the undisturbed run. Off where the fault is in the config itself and only Ray survives it."""
