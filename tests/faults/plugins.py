"""A user's components, some of which misbehave: named by path in the configs of the fault matrix."""

from __future__ import annotations

import os
import re
import sys
import time

from policies.base.records import Prompt, Trajectory, Verdict
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxBackend, SandboxSettings
from workers.verify.verifier import Verifier

POISON = re.compile(r"[34] times")
"""The questions on which they misbehave."""


def _right(completion: str, answer: object) -> bool:
    return str(answer) in completion


def _asked(prompt: object) -> bool:
    return POISON.search(str(prompt)) is not None


def kills_itself(prompt: object, completion: str, answer: object) -> bool:
    """Ends its process on some answers to one question: each costs two processes."""
    if _asked(prompt) and completion.startswith("It"):
        os._exit(9)
    return _right(completion, answer)


def hangs(prompt: object, completion: str, answer: object) -> bool:
    """Never answers one question."""
    if _asked(prompt):
        time.sleep(3600)
    return _right(completion, answer)


def raises(prompt: object, completion: str, answer: object) -> bool:
    """Raises on one question, in a way that `except Exception` does not see."""
    if _asked(prompt):
        raise SystemExit("enough")
    return _right(completion, answer)


def talks_nonsense(prompt: object, completion: str, answer: object) -> object:
    """Returns what is no score, and floods its output."""
    sys.stdout.write("x" * 100_000)
    return float("nan") if _asked(prompt) else _right(completion, answer)


def always_right(prompt: object, completion: str, answer: object) -> bool:
    """Everything is right."""
    return True


def always_wrong(prompt: object, completion: str, answer: object) -> bool:
    """Everything is wrong."""
    return False


def slow(prompt: object, completion: str, answer: object) -> bool:
    """Takes a while, so that it can be killed in the middle."""
    time.sleep(0.02)
    return _right(completion, answer)


class RunsCode(Verifier):
    """Computes the answer in the sandbox, and takes its time there."""

    class Config(Verifier.Config):
        """Settings of `RunsCode`."""

        timeout_seconds: float = 60.0
        backend: SandboxBackend | None = None

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = SandboxSettings(wall_seconds=20, num_warm=1)
        if config.backend is not None:
            settings = settings.model_copy(update={"backend": config.backend})
        self._sandbox = Sandbox(settings)

    def prepare(self) -> None:
        """Refuse where nothing can contain code."""
        self._sandbox.prepare()

    def verify(self, prompt: Prompt, trajectory: Trajectory) -> Verdict:
        """Right when the completion holds what the program prints."""
        program = f"import time; time.sleep(0.1); print({prompt.answer})"
        result = self._sandbox.run(program)
        return self.scored(trajectory, float(result.stdout.strip() in trajectory.completion))
