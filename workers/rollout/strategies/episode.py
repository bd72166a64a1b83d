"""The policy acts in an environment, turn by turn, until the episode is over."""

from __future__ import annotations

import math
from typing import Annotated, Any

from policies.base.component import Component, create
from policies.base.errors import ConfigurationError, RolloutError, boundary, explain
from policies.base.records import Ending, Message, Prompt
from workers.rollout.chat.chat import ChatFormat
from workers.rollout.environment import ENVIRONMENTS, Environment, Observation
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Outcome, Reply
from workers.rollout.multi_turn.thread_pool import CounterpartThreads

_WHERE = "rollout.strategy.environment"


class Episode(ConversationStrategy):
    """One environment per trajectory; what it says of the episode becomes `Trajectory.outcome`."""

    class Config(ConversationStrategy.Config):
        """Settings of `episode`."""

        environment: Annotated[Environment.Config, ENVIRONMENTS.field()]
        """The world: a shipped environment, or your own by `./file.py:Class`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        seconds = min(config.partner_timeout_seconds, config.environment.timeout_seconds)
        self._threads = CounterpartThreads(config.max_waiting, seconds)
        self._opening: tuple[Message, ...] = ()

    def template_findings(self, chat: ChatFormat, where: str) -> tuple[str, ...]:
        """Try the environment too: one that cannot be played is refused before anything is sampled."""
        with boundary(
            ConfigurationError, f"environment {self.config.environment.type!r} cannot work"
        ):
            environment: Environment = create(self.config.environment)
            warnings = environment.prepare() or ()
            self._opening = environment.sample_opening()
        return (*warnings, *super().template_findings(chat, where))

    def sample_opening(self) -> tuple[Message, ...]:
        return self._opening

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        return EnvironmentCounterpart(self.config.environment, prompt, seed)


class EnvironmentCounterpart(Counterpart):
    """An environment as the other side of a conversation; refuses what no environment may return."""

    def __init__(self, config: Component.Config, prompt: Prompt, seed: int) -> None:
        self._config = config
        self._prompt = prompt
        self._seed = seed
        self._environment: Environment | None = None

    def opening(self, prompt: Prompt) -> tuple[Message, ...]:
        # Built here and not before: also a constructor that fails or hangs is this trajectory's failure alone.
        self._environment = create(self._config)
        return self._messages(self._environment.reset(prompt, self._seed), "reset")

    def framed(self, prompt: Prompt) -> tuple[Message, ...]:
        return self._messages(self._opened().framed(prompt), "framed")

    def reply(self, text: str, turn: int) -> Reply:
        seen: Any = self._opened().step(text)
        if not isinstance(seen, Observation):
            raise self._garbage("step", seen, "an Observation")
        if seen.done:
            return Reply(ending=Ending.ENVIRONMENT)
        messages = self._messages(seen.messages, "step")
        if not messages:
            raise self._garbage("step", messages, "at least one message while the episode goes on")
        return Reply(messages=messages)

    def outcome(self) -> Outcome:
        score: Any = self._opened().outcome()
        if score is None:
            return Outcome()
        if isinstance(score, bool | int | float) and math.isfinite(score) and 0 <= score <= 1:
            return Outcome(score=float(score))
        raise self._garbage("outcome", score, "a number in [0, 1], or None")

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()

    def _opened(self) -> Environment:
        if self._environment is None:
            raise RolloutError(f"the environment of prompt {self._prompt.id!r} was not opened")
        return self._environment

    def _messages(self, found: object, method: str) -> tuple[Message, ...]:
        if not isinstance(found, tuple | list) or not all(isinstance(m, Message) for m in found):
            raise self._garbage(method, found, "a tuple of Message")
        return tuple(found)

    def _garbage(self, method: str, found: object, expected: str) -> RolloutError:
        return RolloutError(
            explain(
                f"environment {self._config.type!r}: {method}() must return {expected}",
                value=repr(found)[:200],
                where=_WHERE,
                fix=f"correct {method}() of the environment",
            )
        )
