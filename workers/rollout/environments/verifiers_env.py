"""A multi-turn environment of the package `verifiers`, versions 0.1 to 0.3, stepped from outside.

`docs/environments.md` says which parts of its interface are used, and why version 0.4 cannot be.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from collections.abc import Coroutine
from types import ModuleType
from typing import Any, Self

from pydantic import Field, JsonValue, model_validator

from policies.base.bounds import MAX_SCORE
from policies.base.component import load_object
from policies.base.errors import ConfigurationError, RolloutError, boundary, explain
from policies.base.records import Message, Prompt
from workers.rollout.environment import Environment, Observation
from workers.rollout.rubric_watch import has_group_rewards, noting_failures, watch

_WHERE = "rollout.strategy.environment"
_TOOLS = ("tool_defs", "oai_tools", "tools")
_NEEDED = (
    "init_state",
    "setup_state",
    "get_prompt_messages",
    "add_trajectory_step",
    "is_completed",
    "render_completion",
    "cleanup",
)


class VerifiersEnvironment(Environment):
    """Takes the part of the model in one rollout of a `MultiTurnEnv`; its rubric scores the episode.

    The row that the environment works on is made from the prompt: its messages, its answer, and `info` of its
    metadata; the environment's system prompt and few-shot examples stand before them, as in its own dataset. One that
    offers tools, or scores a group of attempts together, is refused: use the strategy `tool_loop`, or a verifier.
    """

    class Config(Environment.Config):
        """Settings of `verifiers_env`."""

        function: str
        """Factory that returns the environment: `package.module:load_environment` or `./file.py:name`."""
        arguments: dict[str, JsonValue] = Field(default_factory=dict)
        """Its keyword arguments."""
        low_reward: float = Field(default=0.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Reward of the rubric that scores 0."""
        high_reward: float = Field(default=1.0, ge=-MAX_SCORE, le=MAX_SCORE)
        """Reward of the rubric that scores 1; in between the score is linear, outside it is cut."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low_reward >= self.high_reward:
                raise ValueError(
                    f"low_reward ({self.low_reward}) must be below high_reward ({self.high_reward})"
                )
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._world: Any = None
        self._state: Any = None
        self._shown: list[Any] = []

    def prepare(self) -> None:
        self._world = self._checked()

    def _checked(self) -> Any:
        """A new environment that can be stepped from outside."""
        with boundary(ConfigurationError, f"{_WHERE}: {self.config.function!r} cannot be made"):
            world = self._make()
        missing = [name for name in _NEEDED if not hasattr(world, name)]
        if missing or not hasattr(getattr(world, "rubric", None), "score_rollout"):
            raise ConfigurationError(
                explain(
                    f"this is no MultiTurnEnv of `verifiers` 0.1 to 0.3: it has no {', '.join(missing) or 'rubric'}",
                    value=type(world).__name__,
                    where=f"{_WHERE}.function",
                    fix="see docs/environments.md for what can be adapted",
                )
            )
        tools = [name for key in _TOOLS for name in _names(getattr(world, key, None))]
        if tools:
            raise ConfigurationError(
                explain(
                    "this environment offers tools, and an episode does not hand them on to the policy",
                    value=", ".join(dict.fromkeys(tools)),
                    where=f"{_WHERE}.function",
                    fix="use rollout.strategy {type: tool_loop, tools: [...]} with these functions, and a verifier",
                )
            )
        if has_group_rewards(world.rubric):
            raise ConfigurationError(
                explain(
                    "the environment's rubric scores a group of attempts together, and each episode is scored alone",
                    value=type(world.rubric).__name__,
                    where=f"{_WHERE}.function",
                    fix="give a rubric whose functions take one state, completion and answer, or a `callable` "
                    "verifier, which is given all attempts at a prompt",
                )
            )
        return world

    def framed(self, prompt: Prompt) -> tuple[Message, ...]:
        """The environment's system prompt and examples, then the prompt's own messages, as its own dataset has them."""
        system, few_shot = (
            getattr(self._world, key, None) for key in ("system_prompt", "few_shot")
        )
        own = prompt.messages
        if own and own[0].role == "system":
            head, own = (
                own[:1],
                own[1:],
            )  # as there: a system message of the row's own goes before the environment's
        else:
            head = (Message(role="system", content=str(system)),) if system else ()
        return (*head, *(_plain(message) for message in few_shot or ()), *own)

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        self._loop = asyncio.new_event_loop()
        self._world = self._checked()
        watch(self._world.rubric)
        framed = self.framed(prompt)
        self._types = _types_of(self._world)
        client = None if self._types is None else self._types.ClientConfig()
        row = {
            "prompt": [{"role": m.role, "content": m.content} for m in framed],
            "answer": _answer(prompt),
            "info": prompt.metadata.get("info", {}),
            "example_id": 0,
        }
        self._state = self._run(self._world.init_state(row, client, "policy"))
        self._state = self._run(self._world.setup_state(self._state)) or self._state
        self._shown = list(self._run(self._world.get_prompt_messages(self._state)))
        self._refuse_error()
        if _names(self._state.get("tool_defs")):
            raise RolloutError("the environment offers tools, which an episode does not hand on")
        return tuple(_plain(message) for message in self._shown[len(framed) :])

    def step(self, action: str) -> Observation:
        said = {"role": "assistant", "content": action}
        turn = {
            "prompt": self._shown,
            "completion": [said if self._types is None else self._types.AssistantMessage(**said)],
            "response": None,
            "tokens": None,
            "reward": None,
            "advantage": None,
            "is_truncated": False,
            "trajectory_id": self._state.get("trajectory_id"),
            "extras": {},
        }
        self._run(self._world.add_trajectory_step(self._state, turn))
        if self._is_over():
            return Observation(messages=(), done=True)
        found = list(self._run(self._world.get_prompt_messages(self._state)))
        if self._state.get("final_env_response") is not None or self._is_over():
            return Observation(messages=(), done=True)
        before, self._shown = len(self._shown) + 1, found
        return Observation(messages=tuple(_plain(message) for message in found[before:]))

    def outcome(self) -> float:
        self._run(self._world.render_completion(self._state))
        with noting_failures() as failures:
            self._run(self._world.rubric.score_rollout(self._state))
        if failures:
            raise RolloutError(f"the environment's rubric failed: {'; '.join(failures)}")
        self._refuse_error()
        reward = self._state.get("reward")
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise RolloutError(
                explain(
                    "the rubric gave no finite reward",
                    value=reward,
                    where=f"{_WHERE}.function",
                    fix="correct the environment's rubric",
                )
            )
        low, high = self.config.low_reward, self.config.high_reward
        return min(1.0, max(0.0, (float(reward) - low) / (high - low)))

    def close(self) -> None:
        if self._loop is None:
            return
        try:
            if self._state is not None:
                self._run(self._world.cleanup(self._state))
        finally:
            self._loop.close()
            self._loop = None

    def _make(self) -> Any:
        return load_object(self.config.function)(**self.config.arguments)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            work.close()
            raise RolloutError("the episode has not begun, or is over")
        return self._loop.run_until_complete(work)

    def _is_over(self) -> bool:
        over = bool(self._run(self._world.is_completed(self._state)))
        self._refuse_error()
        return over

    def _refuse_error(self) -> None:
        error = self._state.get("error")
        if error is not None:
            raise RolloutError(f"the environment failed: {type(error).__name__}: {error}")


def _types_of(world: object) -> ModuleType | None:
    """The module with the message classes of the installed `verifiers`; None for what only looks like it."""
    suffix = ".envs.multiturn_env"
    homes = (base.__module__ for base in type(world).__mro__)
    home = next((name for name in homes if name.endswith(suffix)), None)
    return None if home is None else importlib.import_module(home.removesuffix(suffix) + ".types")


def _answer(prompt: Prompt) -> str:
    """The answer as text: what the file says of a number or a truth value, 0 and false included."""
    if prompt.answer is None:
        return ""
    return prompt.answer if isinstance(prompt.answer, str) else json.dumps(prompt.answer)


def _names(tools: object) -> list[str]:
    """Names of tools, however they are described."""
    found = tools.values() if isinstance(tools, dict) else tools
    if not isinstance(found, list | tuple) and not isinstance(tools, dict):
        return []
    names = []
    for tool in found or ():  # type: ignore[attr-defined]
        inner = tool.get("function", tool) if isinstance(tool, dict) else tool
        name = inner.get("name") if isinstance(inner, dict) else getattr(inner, "name", None)
        names.append(str(name or getattr(inner, "__name__", type(inner).__name__)))
    return names


def _plain(message: Any) -> Message:
    """Our record of one of their messages, which may be a dict, a model, or one with parts.

    Raises:
        RolloutError: it holds something that is no text.
    """
    role, content = message["role"], message["content"]
    if isinstance(content, list) and all(part["type"] == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RolloutError(f"the environment sent a {role} message that is no text")
    return Message(role="user" if role == "text" else role, content=content)
