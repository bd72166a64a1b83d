"""Conversations of a policy with a counterpart (tools, an environment, instructions), many at a time.

A strategy says who the counterpart is; `ConversationStrategy.run` does the rest: it keeps the exact token ids, asks the
engine for the next turn as soon as the counterpart has answered, and never lets one trajectory wait for another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from policies.base.records import Message, Prompt, Trajectory
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.chat.template_probe import (
    TEMPLATE,
    Conversation,
    check_conversation,
    foreign_calls,
)
from workers.rollout.engine import RolloutEngine
from workers.rollout.multi_turn.counterpart import Counterpart, Outcome, Reply
from workers.rollout.multi_turn.loop import Conversations
from workers.rollout.multi_turn.settings import ConversationSettings
from workers.rollout.multi_turn.thread_pool import CounterpartThreads
from workers.rollout.strategy import RolloutJob, RolloutStrategy

__all__ = ["ConversationStrategy", "Counterpart", "Outcome", "Reply"]

logger = logging.getLogger(__name__)


class ConversationStrategy(RolloutStrategy):
    """Policy and counterpart in turn, up to a number of turns. Subclasses give `counterpart`."""

    class Config(ConversationSettings):
        """Settings of every strategy with several turns."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # Partners are closed in threads of their own: closing is what can free those that hang.
        self._threads, self._closers = (
            CounterpartThreads(config.max_waiting, config.partner_timeout_seconds) for _ in range(2)
        )

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        """The other side of one trajectory; `seed` is its own. Called in a thread."""
        raise NotImplementedError

    def sample_observation(self) -> tuple[Message, ...]:
        """Messages of the roles that counterparts answer with, for trying the chat template."""
        return (Message(role="user", content="pawl observes"),)

    def sample_opening(self) -> tuple[Message, ...]:
        """Messages of the roles that counterparts begin with after the prompt, for trying the chat template."""
        return ()

    def sample_tools(self) -> tuple[dict[str, Any], ...]:
        """Schemas that counterparts give to the chat template, for trying it."""
        return ()

    def call_words(self) -> tuple[str, ...]:
        """Texts that a policy must have read to write its calls as they are parsed."""
        return ()

    def template_findings(self, chat: ChatFormat, where: str) -> tuple[str, ...]:
        if self.config.max_turns == 1 and not self.sample_tools():
            return ()
        tried = Conversation(
            observation=self.sample_observation(),
            tools=self.sample_tools(),
            opening=self.sample_opening(),
            call_words=self.call_words(),
            rewritten_history=self.config.rewritten_history,
            where=where,
        )
        found = []
        rewritten = check_conversation(chat, tried)
        if rewritten is not None and self.config.rewritten_history == "auto":
            found.append(
                f"the chat template shows earlier turns otherwise than they were sampled ({rewritten}); the sampled "
                f"tokens are kept. Set by: {where}.rewritten_history (auto). Fix: nothing has to be done; `keep` says "
                "that it is meant, `refuse` refuses such templates"
            )
        foreign = foreign_calls(chat, tried)
        if foreign:
            found.append(
                f"the chat template tells of tools, but does not write {' and '.join(foreign)}, which calls are read "
                f"by: the policy is taught another way to call. Set by: {TEMPLATE} and {where}.calls. Fix: set "
                "rollout.template_tools: text, unless the prompts say how to call"
            )
        return tuple(found)

    def prepare(self, engine: RolloutEngine) -> None:
        for finding in self.template_findings(engine.chat, "rollout.strategy"):
            logger.warning("%s", finding)

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        return Conversations(self, job, engine, self._threads, self._closers).run()

    def close(self) -> None:
        self._threads.release()
        self._closers.release()
