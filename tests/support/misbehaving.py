"""A policy that does with its tools, and an environment that does, whatever they should not, each in every way."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

from policies.base.component import Component
from policies.base.records import Message, PolicyVersion, Prompt, StopReason
from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.engines.fake import TERMINATOR, FakeEngine
from workers.rollout.environment import Environment, Observation, observe

CALLED = ("hang", "flood", "raise", "exit", "os._exit", "abort", "bytes", "object", "well")
"""What the tool of `misbehaving_tool.py` is told to do, once."""
HABITS = (*CALLED, "garbage", "unknown", "arguments", "for ever", "too long")


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class MisbehavingEngine(FakeEngine):
    """The first turn of every trajectory has the next one of `HABITS`; the second answers as the fake engine does."""

    def __init__(
        self,
        config: Component.Config,
        *,
        policy: PolicyVersion,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(config, policy=policy, dtype=dtype, seed=seed)
        self._next: Iterator[str] = itertools.cycle(HABITS)

    def _one(self, request: GenerationRequest) -> Generation:
        said = self.chat.decode(request.prompt_token_ids)
        if TERMINATOR not in request.prompt_token_ids:
            text = self._first_turn(next(self._next))
        elif "for ever" in said:
            text = call("behave", how="for ever", number=1)
        else:
            return super()._one(request)
        ids = (*text.encode(), TERMINATOR)[: request.sampling.max_tokens]
        stop = StopReason.STOP if ids[-1] == TERMINATOR else StopReason.LENGTH
        return Generation(ids, (-0.5,) * len(ids), self.chat.decode(ids), stop)

    def _first_turn(self, habit: str) -> str:
        match habit:
            case "garbage":
                return '<tool_call>{"name": "behave", oops'
            case "unknown":
                return call("rm", path="/")
            case "arguments":
                return call("behave", how=7, more=[])
            case "too long":
                return "and so on " * 1000
            case _:
                return call("behave", how=habit, number=1)


class UnrulyEnvironment(Environment):
    """By the first number of the question: 2 never ends, 3 raises, 4 hangs, others end after a turn."""

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        self.kind = prompt.messages[-1].content.removeprefix("What is ")[0]
        return ()

    def step(self, action: str) -> Observation:
        if self.kind == "3":
            raise ValueError("boo")
        if self.kind == "4":
            time.sleep(2)
        return observe("Go on.") if self.kind == "2" else Observation(messages=(), done=True)

    def outcome(self) -> float | None:
        return 0.5
