"""Any environment with the Gymnasium interface whose states can be written as text."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from policies.base.bounds import MAX_SCORE
from policies.base.component import load_object
from policies.base.errors import ConfigurationError, RolloutError, boundary, explain
from policies.base.records import Message, Prompt
from policies.base.seeds import derive_seed
from workers.rollout.environment import Environment, Observation, observe, whole_number
from workers.rollout.environment_trial import actions_refused, random_returns

_WHERE = "rollout.strategy.environment"
_NUMBER = re.compile(r"-?\d{1,9}")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_HIGHLIGHT = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)
_SEED_KEY = "seed"


class GymnasiumEnvironment(Environment):
    """Adapts `reset(seed=) -> (obs, info)` and `step(action) -> (obs, reward, terminated, truncated, info)`.

    The world is seeded by its prompt (metadata `seed`, else the prompt's id), so all samples of a prompt meet the
    same world, and equal actions lead to equal observations.
    """

    class Config(Environment.Config):
        """Settings of `gymnasium`."""

        id: str | None = None
        """Name in Gymnasium's registry, e.g. `FrozenLake-v1`; needs the package `gymnasium`."""
        function: str | None = None
        """Or your own factory, `package.module:make` or `./file.py:make`, that returns an environment."""
        arguments: dict[str, JsonValue] = Field(default_factory=dict)
        """Keyword arguments of the registry's `make` or of your factory, e.g. {is_slippery: false}."""
        show: Literal["observation", "render"] = "observation"
        """What the policy reads: `str` of the observation, or the text of `render()` (made with render_mode=ansi)."""
        show_start: bool = True
        """Show the first state as a message after the prompt's own. Off where the prompt says it."""
        text: str = "{state}"
        """The message that shows a state; `{state}` stands for it."""
        actions: Literal["integer", "text"] | tuple[str, ...] = "integer"
        """How a turn becomes an action: its last whole number, its text, or the number of the label that it names
        last, e.g. [left, down, right, up]."""
        unreadable: str = "That is no action."
        """Said when there is no action in a turn, or none of the world's `action_space`; the world does not move."""
        unreadable_cost: float = Field(default=0.1, ge=0, le=1)
        """What each turn without an action takes off the score, at most down to 0."""
        low_return: float = Field(default=0.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Sum of rewards that scores 0; `pawl plan` plays at random and warns when nothing comes near the scale."""
        high_return: float = Field(default=1.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Sum of rewards that scores 1; in between the score is linear, outside it is cut."""
        unfinished: Literal["lowest", "return"] = "lowest"
        """An episode that the world has not ended (turns or tokens ran out) scores 0, or by its rewards so far: for
        worlds without an end."""

        @model_validator(mode="after")
        def _fit(self) -> Self:
            if (self.id is None) == (self.function is None):
                raise ValueError("give exactly one of id and function")
            if self.low_return >= self.high_return:
                raise ValueError(
                    f"low_return ({self.low_return}) must be below high_return ({self.high_return})"
                )
            if self.actions == ():
                raise ValueError("actions names no label")
            if "{state}" not in self.text:
                raise ValueError("text must have {state} in it")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._world: Any = None
        self._return = 0.0
        self._is_over = False
        self._unreadable = 0

    def prepare(self) -> Sequence[str]:
        if self.config.id is not None and importlib.util.find_spec("gymnasium") is None:
            raise ConfigurationError(
                explain(
                    "the package `gymnasium` is not installed",
                    value=self.config.id,
                    where=f"{_WHERE}.id",
                    fix="pip install gymnasium, or give your own factory as `function`",
                )
            )
        with boundary(ConfigurationError, f"{_WHERE}: {self._named!r} cannot be made"):
            self._world = self._make()
        try:
            space = getattr(self._world, "action_space", None)
            refused = actions_refused(space, self.config.actions)
            if refused is not None:
                raise ConfigurationError(
                    explain(
                        f"no turn of the policy can be an action of this world: {refused.what}",
                        value=str(space),
                        where=f"{_WHERE}.actions",
                        fix=refused.fix,
                    )
                )
            with boundary(ConfigurationError, f"{_WHERE}: {self._named!r} cannot be played"):
                returns = random_returns(self._world)
        finally:
            self.close()
        return self._off_the_scale(returns)

    def sample_opening(self) -> tuple[Message, ...]:
        return observe("pawl shows a state").messages if self.config.show_start else ()

    def _off_the_scale(self, returns: Sequence[float]) -> Sequence[str]:
        """A warning when every random episode scores the same because the scale is elsewhere."""
        low, high = self.config.low_return, self.config.high_return
        if not returns or not (max(returns) < low or min(returns) > high):
            return ()
        score = 0 if max(returns) < low else 1
        return (
            f"{len(returns)} random episodes of {self._named} returned {min(returns):g} to {max(returns):g}, and the "
            f"scale is {low:g} to {high:g}: all of them would score {score}. Set by: {_WHERE}.low_return and "
            "high_return. Fix: set low_return to the worst and high_return to the best return that can be reached",
        )

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        self._world = self._make()
        self._return, self._is_over, self._unreadable = 0.0, False, 0
        # Gymnasium's own seeding takes 32 bits.
        own = whole_number(prompt, _SEED_KEY, derive_seed("gymnasium", prompt.id) % 2**31)
        state, _ = self._world.reset(seed=own)
        return observe(self._shown(state)).messages if self.config.show_start else ()

    def step(self, action: str) -> Observation:
        chosen = self._action(action)
        space = getattr(self._world, "action_space", None)
        if chosen is None or (space is not None and not space.contains(chosen)):
            self._unreadable += 1
            return observe(self.config.unreadable)
        state, reward, terminated, truncated, _ = self._world.step(chosen)
        self._return += float(reward)
        if terminated or truncated:
            self._is_over = True
            return Observation(messages=(), done=True)
        return observe(self._shown(state))

    def outcome(self) -> float:
        if not math.isfinite(self._return):
            raise RolloutError(
                explain(
                    "the environment's rewards do not add up to a finite number",
                    value=self._return,
                    where=_WHERE,
                    fix="correct the environment's reward",
                )
            )
        if not self._is_over and self.config.unfinished == "lowest":
            return 0.0  # whatever the sign of the rewards: doing nothing never beats the end of an episode
        low, high = self.config.low_return, self.config.high_return
        scaled = min(1.0, max(0.0, (self._return - low) / (high - low)))
        return max(0.0, scaled - self._unreadable * self.config.unreadable_cost)

    def close(self) -> None:
        world, self._world = self._world, None
        if hasattr(world, "close"):
            world.close()

    @property
    def _named(self) -> str | None:
        return self.config.id or self.config.function

    def _make(self) -> Any:
        arguments: dict[str, Any] = dict(self.config.arguments)
        if self.config.show == "render":
            arguments.setdefault("render_mode", "ansi")
        if self.config.function is not None:
            return load_object(self.config.function)(**arguments)
        # Not a dependency of ours: type checkers would miss it where it is not installed.
        return importlib.import_module("gymnasium").make(self.config.id, **arguments)

    def _shown(self, state: object) -> str:
        found = self._world.render() if self.config.show == "render" else state
        # Colours of a terminal: FrozenLake marks the player's square by nothing else, so it becomes a bracket.
        text = _HIGHLIGHT.sub(r"[\1]", str(found))
        return self.config.text.replace("{state}", _ANSI.sub("", text).strip("\n"))

    def _action(self, text: str) -> int | str | None:
        labels = self.config.actions
        if labels == "text":
            return text
        if labels == "integer":
            numbers = _NUMBER.findall(text)
            return int(numbers[-1]) if numbers else None
        first = int(getattr(getattr(self._world, "action_space", None), "start", 0))
        words = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
        named = re.findall(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE)
        folded = [label.casefold() for label in labels]
        return first + folded.index(named[-1].casefold()) if named else None
