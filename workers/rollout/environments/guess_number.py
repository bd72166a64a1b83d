"""Guess a secret number: the world says whether the secret is higher or lower."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COUNT, MAX_WHOLE
from policies.base.errors import InputError, explain
from policies.base.records import Message, Prompt
from policies.base.seeds import derive_rng
from workers.rollout.environment import Environment, Observation, observe, whole_number

_NUMBER = re.compile(r"-?\d{1,9}")
_SECRET_KEY = "secret"  # nosec B105 # the secret of a game


class GuessNumber(Environment):
    """A secret whole number, and a limited number of guesses.

    A prompt's metadata may say `low`, `high`, `guesses` and `secret`; what it does not say comes from the settings,
    and the secret from chance, another one for each sample. A guess is the last number that the policy writes.
    """

    class Config(Environment.Config):
        """Settings of `guess_number`."""

        low: int = Field(default=1, ge=-MAX_WHOLE, le=MAX_WHOLE)
        """Smallest secret."""
        high: int = Field(default=20, ge=-MAX_WHOLE, le=MAX_WHOLE)
        """Largest secret."""
        guesses: int = Field(default=5, ge=1, le=MAX_COUNT)
        """Guesses after which the game is lost; a turn without a number is one too."""
        score: Literal["hit", "speed"] = "hit"
        """hit: 1 for the secret, else 0. speed: 1 for a hit at once, down to 1/guesses for a hit at the last guess."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
            return self

    config: Config

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        low = whole_number(prompt, "low", self.config.low)
        high = whole_number(prompt, "high", self.config.high)
        self._allowed = whole_number(prompt, "guesses", self.config.guesses)
        drawn = derive_rng(seed, "guess_number").randint(low, high) if low <= high else low
        self._secret = whole_number(prompt, _SECRET_KEY, drawn)
        if not low <= self._secret <= high or self._allowed < 1:
            raise InputError(
                explain(
                    "no game can start: the secret must lie between low and high, and guesses must be at least 1",
                    value={"low": low, "high": high, "secret": self._secret},
                    where=f"metadata of prompt {prompt.id!r}",
                    fix="correct the prompt, or rollout.strategy.environment",
                )
            )
        self._used = 0
        self._hit = False
        return ()

    def step(self, action: str) -> Observation:
        self._used += 1
        numbers = _NUMBER.findall(action)
        guess = int(numbers[-1]) if numbers else None
        self._hit = guess == self._secret
        if self._hit or self._used >= self._allowed:
            return Observation(messages=(), done=True)
        if guess is None:
            return observe("I see no number. Guess a number.")
        direction = "higher" if self._secret > guess else "lower"
        return observe(f"{guess} is wrong. The number is {direction}. Guess again.")

    def outcome(self) -> float:
        if not self._hit:
            return 0.0
        if self.config.score == "hit":
            return 1.0
        return (self._allowed - self._used + 1) / self._allowed
