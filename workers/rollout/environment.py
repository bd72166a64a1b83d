"""The environment seam: a world that a policy acts in by text, one object per trajectory."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from policies.component import Component, Family
from policies.records import Message, Probability, Prompt


@dataclass(frozen=True)
class Observation:
    """What the world answers to an action."""

    messages: tuple[Message, ...]
    """Shown to the policy before its next turn; not read when `done`."""
    done: bool = False


class Environment(Component):
    """One episode. Any exception that it raises makes the trajectory an error."""

    class Config(Component.Config):
        """Settings that every environment has."""

        timeout_seconds: float = Field(default=10.0, gt=0)
        """Longest time of one `reset` or `step`; after it the trajectory is an error."""

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        """Begin the episode that `prompt` describes; returns messages that follow the prompt's own (often none)."""
        raise NotImplementedError

    def step(self, action: str) -> Observation:
        """Apply what the policy wrote. An action that cannot be read is the policy's fault: answer it or end badly."""
        raise NotImplementedError

    def outcome(self) -> Probability | None:
        """Score of the episode so far in [0, 1]; asked once, at its end, also when turns or tokens ran out."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the episode holds."""


ENVIRONMENTS = Family("environment", package="workers.rollout.environments", base=Environment)
