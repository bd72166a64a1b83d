"""A user's components, some of which misbehave: named by path in the configs of the fault matrix."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence

from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.engines.fake import FakeEngine

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


class DeadlyEngine(FakeEngine):
    """Sampling for one question ends the worker's process, each time: a poison prompt."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """As the scripted engine, unless the question is among the requests."""
        if any(_asked(self.chat.decode(r.prompt_token_ids)) for r in requests):
            os._exit(9)
        return super().generate(requests)
