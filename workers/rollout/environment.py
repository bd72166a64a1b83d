"""The environment seam: a world that a policy acts in by text, one object per trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from policies.base.bounds import MAX_SECONDS
from policies.base.component import Component, Family
from policies.base.errors import InputError, explain
from policies.base.records import Message, Probability, Prompt


@dataclass(frozen=True)
class Observation:
    """The world's answer to an action."""

    messages: tuple[Message, ...]
    """Shown to the policy before its next turn; not read when `done`."""
    done: bool = False


class Environment(Component):
    """One episode. Any exception that it raises makes the trajectory an error."""

    class Config(Component.Config):
        """Settings that every environment has."""

        timeout_seconds: float = Field(default=10.0, gt=0, le=MAX_SECONDS)
        """Longest time of one `reset` or `step`; after it the trajectory is an error."""

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self) -> Sequence[str] | None:
        """Asked of one object that will play no episode, by `pawl plan` too: what cannot be played is refused here.

        Gives back what it opens; `close` does not follow. Returns what a user should know of it, if anything.

        Raises:
            ConfigurationError: e.g. a package is missing, or no text can be an action.
        """
        return None

    def sample_opening(self) -> tuple[Message, ...]:
        """Messages of the roles that `reset` returns, for trying the chat template; asked after `prepare`."""
        return ()

    def framed(self, prompt: Prompt) -> tuple[Message, ...]:
        """Return what stands before the messages of `reset`: the prompt's own, among a system line or examples of the
        world's.

        It must follow from the prompt alone; asked after `reset` or `prepare`.
        """
        return prompt.messages

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        """Begin the episode that `prompt` describes; returns messages that follow the prompt's own (often none).

        What is returned must follow from the prompt alone: samples of one prompt share their prompt tokens.
        Chance after the opening may follow `seed`, which differs per sample.
        """
        raise NotImplementedError

    def step(self, action: str) -> Observation:
        """Apply what the policy wrote. An action that cannot be read is the policy's fault: answer it or end badly."""
        raise NotImplementedError

    def outcome(self) -> Probability | None:
        """Score of the episode so far in [0, 1]; asked once, at its end, also when turns or tokens ran out."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the episode holds."""


def observe(text: str) -> Observation:
    """The world goes on and says `text` to the policy, as a user does."""
    return Observation(messages=(Message(role="user", content=text),))


def whole_number(prompt: Prompt, key: str, default: int) -> int:
    """The whole number under `key` of the prompt's metadata, which says how an episode starts, else `default`.

    Raises:
        InputError: something else stands there.
    """
    value = prompt.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(
            explain(
                f"the start of an episode needs a whole number as {key!r}",
                value=value,
                where=f"metadata of prompt {prompt.id!r}",
                fix=f"write {key}: {default}, or leave it out",
            )
        )
    return value


ENVIRONMENTS = Family("environment", package="workers.rollout.environments", base=Environment)
