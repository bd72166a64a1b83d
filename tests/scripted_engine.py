"""An engine whose turns a test writes itself, token by token; it keeps what it was asked and what it answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.records import PolicyVersion
from workers.rollout.chat import ChatFormat
from workers.rollout.engine import BatchEngine, Generation, GenerationRequest

Script = Callable[[GenerationRequest], Generation]


class ScriptedEngine(BatchEngine):
    """Answers with what `script` makes of a request, one request per `advance` unless told otherwise."""

    def __init__(self, chat: ChatFormat, script: Script, *, batch_size: int | None = None) -> None:
        super().__init__(batch_size=batch_size)
        self.chat = chat
        self.serving = PolicyVersion(number=1, round=1, parent=0, path="", digest="d1")
        self.heard: list[tuple[GenerationRequest, Generation]] = []
        """Every request with its answer, in the order of the answers."""
        self._script = script

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        answers = [self._script(request) for request in requests]
        self.heard += zip(requests, answers, strict=True)
        return answers
