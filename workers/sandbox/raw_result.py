"""The raw result of a contained process: what it wrote, how it ended, what it used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Ending = Literal["exit", "done", "wall", "cpu", "flood", "threads", "files", "start"]


@dataclass
class Raw:
    """The raw result of a process."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    control: bytearray = field(default_factory=bytearray)
    ending: Ending = "exit"
    exit_code: int | None = None
    """As `subprocess` counts: a signal is negative; None while the process lives."""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
