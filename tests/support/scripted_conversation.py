"""A conversation strategy whose counterpart is made of functions, and an engine that says hello."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from policies.base.records import (
    Ending,
    Message,
    Prompt,
    Sampling,
    StopReason,
    Trajectory,
)
from tests.support.scripted_engine import ScriptedEngine
from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.engines.fake import TERMINATOR, FakeChat
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Outcome, Reply
from workers.rollout.strategy import RolloutJob

QUESTION = Message(role="user", content="go")
HELLO = (*b"hello", TERMINATOR)
NEXT = Reply(messages=(Message(role="user", content="next"),))
DONE = Reply(ending=Ending.ANSWERED)
ReplyScript = Callable[[str, int], Any]


class Scripted(Counterpart):
    """Replies as the test says, and counts what is asked of it."""

    def __init__(self, reply: ReplyScript, outcome: Callable[[], Any], asked: list[str]) -> None:
        self._reply = reply
        self._outcome = outcome
        self.asked = asked

    def reply(self, text: str, turn: int) -> Reply:
        self.asked.append(f"reply {turn}")
        found: Reply = self._reply(text, turn)
        return found

    def outcome(self) -> Outcome:
        self.asked.append("outcome")
        found: Outcome = self._outcome()
        return found

    def close(self) -> None:
        self.asked.append("close")


class WithScript(ConversationStrategy):
    """A counterpart per trajectory, made from functions."""

    def __init__(self, reply: ReplyScript, outcome: Callable[[], Any] = Outcome, **settings: Any):
        super().__init__(WithScript.Config(type="with_script", **settings))
        self.reply = reply
        self.outcome = outcome
        self.asked: dict[str, list[str]] = defaultdict(list)
        self.seeds: list[int] = []

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        self.seeds.append(seed)
        return Scripted(self.reply, self.outcome, self.asked[prompt.id])


def hello(request: GenerationRequest) -> Generation:
    """Says "hello" and ends the turn, as far as the budget goes."""
    ids = HELLO[: request.sampling.max_tokens]
    stop = StopReason.STOP if ids[-1] == TERMINATOR else StopReason.LENGTH
    return Generation(ids, (-0.5,) * len(ids), FakeChat().decode(ids), stop)


def run(
    strategy: ConversationStrategy,
    engine: ScriptedEngine | None = None,
    *,
    prompts: int = 1,
    samples: int = 1,
    max_tokens: int = 64,
    message: Message = QUESTION,
) -> list[Trajectory]:
    asked = tuple(Prompt(id=f"p{n}", messages=(message,)) for n in range(prompts))
    job = RolloutJob(asked, samples, Sampling(max_tokens=max_tokens), "r1", seed=0)
    return list(strategy.run(job, engine or ScriptedEngine(FakeChat(), hello)))


def until(turns: int) -> ReplyScript:
    """Goes on until the policy has said so many turns."""
    return lambda text, turn: NEXT if turn + 1 < turns else DONE
