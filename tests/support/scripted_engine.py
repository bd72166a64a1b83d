"""An engine whose turns a test writes itself, token by token; it keeps what it was asked and what it answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.base.records import PolicyVersion
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest

Script = Callable[[GenerationRequest], Generation]


class ScriptedEngine(BatchEngine):
    """Answers with what `script` makes of a request; every answer takes `steps` calls of `advance`."""

    def __init__(self, chat: ChatFormat, script: Script, *, steps: int = 1) -> None:
        super().__init__()
        self.chat = chat
        self.serving = PolicyVersion(number=1, round=1, parent=0, path="", digest="d1")
        self.heard: list[tuple[GenerationRequest, Generation]] = []
        """Every request with its answer, in the order of the answers."""
        self._script = script
        self._steps = steps
        self._steps_done = 0

    def advance(self) -> list[tuple[int, Generation]]:
        self._steps_done += 1
        return super().advance() if self._steps_done % self._steps == 0 else []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        answers = [self._script(request) for request in requests]
        self.heard += zip(requests, answers, strict=True)
        return answers
