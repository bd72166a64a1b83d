"""A user's verifier and a trainer that take memory until something ends them: for tests of the memory killer.

They grow where the environment asks for it (`VARIABLE`: `verifier` or `trainer`, and a file that says that one has
grown), the first time that anyone does; otherwise they only do their work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from policies.base.errors import PawlError
from policies.examples.kinds import Example
from workers.training.engine import UpdateJob
from workers.training.engines.fake import FakeTrainingEngine

VARIABLE = "PAWL_FAULT_GROWING_NUM_THREADS"
"""Named so that it reaches a verifier's process: those see few variables, and all that end like this one."""
_STEP_BYTES = 64 << 20
_MOST_BYTES = 2 << 30
_STEP_SECONDS = 0.02
_HOLD_SECONDS = 15.0
"""How long it stands there, grown, before it gives up on being ended."""


def grow(who: str) -> None:
    """Take memory step by step when it is asked for and has not been done.

    Raises:
        PawlError: nothing ended this process.
    """
    asked, _, note = os.environ.get(VARIABLE, "").partition(":")
    if asked != who:
        return
    try:
        Path(note).touch(exist_ok=False)
    except FileExistsError:
        return
    held: list[bytes] = []
    while len(held) * _STEP_BYTES < _MOST_BYTES:
        held.append(b"\1" * _STEP_BYTES)
        time.sleep(_STEP_SECONDS)
    time.sleep(_HOLD_SECONDS)
    raise PawlError(f"{_MOST_BYTES} bytes were taken, and nothing ended this process")


def verifier(prompt: object, completion: str, answer: object) -> bool:
    """Right when the completion holds the answer."""
    grow("verifier")
    return str(answer) in completion


class Trainer(FakeTrainingEngine):
    """The fake one."""

    def load(self, job: UpdateJob, examples: Sequence[Example]) -> dict[str, float]:
        """Begin the update."""
        grow("trainer")
        return super().load(job, examples)
