"""What every environment promises, found by family: a new file in the folder is tested with no edit here.

An environment that needs settings gets them from `SETTINGS`; one that is not listed is tried with its defaults.
"""

from __future__ import annotations

import asyncio
import pickle
import random
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import Message, Prompt
from workers.rollout.environment import ENVIRONMENTS, Environment

NAMES = sorted(ENVIRONMENTS.members())
SETTINGS: dict[str, dict[str, Any]] = {
    "gymnasium": {"function": "tests.contracts.test_environments:Corridor"},
    "verifiers_env": {"function": "tests.contracts.test_environments:ThreeQuestions"},
}
PROMPT = Prompt(id="p1", messages=(Message(role="user", content="Play."),), answer="7")
ACTIONS = {
    "empty": "",
    "blank": " \n\t ",
    "number": "I take 2.",
    "word": "two",
    "negative": "-3",
    "zero": "0",
    "fraction": "0.5",
    "huge number": "9" * 100_000,
    "huge text": "so 1 " * 50_000,
    "other digits": "\u0663 \uff13",
    "markup": "{state} {0.__class__} %s <|im_end|> \\boxed{1}",
    "control": "\x00\x1b[31m\u202e1\x7f",
}


class Corridor:
    """A world with the Gymnasium interface: go right (1) three times."""

    def reset(self, *, seed: int | None = None) -> tuple[int, dict[str, Any]]:
        self._random = random.Random(seed)
        self._place = self._random.randint(0, 2)
        return self._place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self._place += 1 if action == 1 else -1
        return self._place, float(self._place >= 3), self._place >= 3, False, {}


class ThreeQuestions:
    """What is used of a `MultiTurnEnv` of the package `verifiers`, in the smallest form."""

    def __init__(self) -> None:
        self.rubric = self

    async def init_state(self, row: dict[str, Any], client: None, model: str) -> dict[str, Any]:
        return {"prompt": row["prompt"], "answer": row["answer"], "trajectory": []}

    async def setup_state(self, state: dict[str, Any]) -> None:
        state["asked"] = 0

    async def get_prompt_messages(self, state: dict[str, Any]) -> list[dict[str, str]]:
        if not state["trajectory"]:
            return list(state["prompt"])
        await asyncio.sleep(0)
        state["asked"] += 1
        last = state["trajectory"][-1]
        again = {"role": "user", "content": f"Again, {state['asked']}."}
        return [*last["prompt"], *last["completion"], again]

    async def add_trajectory_step(self, state: dict[str, Any], step: dict[str, Any]) -> None:
        state["trajectory"].append(step)

    async def is_completed(self, state: dict[str, Any]) -> bool:
        return len(state["trajectory"]) >= 3

    async def render_completion(self, state: dict[str, Any]) -> None:
        state["said"] = [t["completion"][0]["content"] for t in state["trajectory"]]

    async def score_rollout(self, state: dict[str, Any]) -> None:
        right = [state["answer"] in text for text in state["said"]]
        state["reward"] = sum(right) / 3

    async def cleanup(self, state: dict[str, Any]) -> None:
        state["cleaned"] = True


def build(name: str, **changes: Any) -> Environment:
    settings = {"type": name, **SETTINGS.get(name, {}), **changes}
    built: Environment = create(ENVIRONMENTS.parse(settings))
    return built


def play(name: str, actions: list[str], seed: int = 0) -> list[object]:
    """Everything that an episode shows."""
    environment = build(name)
    environment.prepare()
    seen: list[object] = [environment.reset(PROMPT, seed)]
    try:
        for action in actions:
            observation = environment.step(action)
            seen.append(observation)
            if observation.done:
                break
        seen.append(environment.outcome())
    finally:
        environment.close()
    return seen


def test_there_are_environments_to_test() -> None:
    assert {"guess_number", "nim", "gymnasium", "verifiers_env"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ACTIONS)
def test_any_action_is_answered_and_leaves_an_outcome_in_range(name: str, kind: str) -> None:
    environment = build(name)
    environment.reset(PROMPT, 1)
    try:
        for _ in range(8):
            observation = environment.step(ACTIONS[kind])
            outcome = environment.outcome()
            assert outcome is None or 0.0 <= outcome <= 1.0
            if observation.done:
                break
            assert observation.messages
            assert all(m.content.strip() for m in observation.messages)
            assert all(len(m.content) < 1000 for m in observation.messages)
    finally:
        environment.close()


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_that_was_cut_at_once_has_an_outcome(name: str) -> None:
    outcome = play(name, [])[-1]
    assert outcome is None or (isinstance(outcome, float) and 0.0 <= outcome <= 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_opening_follows_from_the_prompt_alone(name: str) -> None:
    assert play(name, [], seed=1)[0] == play(name, [], seed=2)[0]


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_and_actions_give_equal_episodes(name: str) -> None:
    actions = ["1", "I take 2.", "no", "3", "1"]
    assert play(name, actions, seed=5) == play(name, actions, seed=5)


@pytest.mark.parametrize("name", NAMES)
def test_closing_before_the_episode_and_twice_is_allowed(name: str) -> None:
    environment = build(name)
    environment.close()
    environment = build(name)
    opening = environment.reset(PROMPT, 0)
    environment.close()
    environment.close()
    assert isinstance(opening, tuple)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_json_and_pickle(name: str) -> None:
    settings = {"type": name, "timeout_seconds": 3, **SETTINGS.get(name, {})}
    config = ENVIRONMENTS.parse(settings)
    assert ENVIRONMENTS.parse(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="no_such_setting"):
        ENVIRONMENTS.parse({**settings, "no_such_setting": 1})
