"""Environments of the package `verifiers`, by a stand-in with what is used of it: shown, scored, or refused."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import ConfigurationError, RolloutError
from policies.base.records import Json, Message, Prompt
from tests.contracts.test_environments import ThreeQuestions
from workers.rollout.environment import ENVIRONMENTS, Environment

HERE = "tests.unit.workers.test_environment_verifiers"


def fails() -> None:
    raise OSError("no display")


def nothing() -> object:
    return object()


def prompt(metadata: dict[str, Json] | None = None, answer: Json = None) -> Prompt:
    message = Message(role="user", content="Play.")
    return Prompt(id="p", messages=(message,), metadata=metadata or {}, answer=answer)


class EndsItself(ThreeQuestions):
    """Says its last word as `final_env_response`."""

    async def get_prompt_messages(self, state: dict[str, Any]) -> list[dict[str, str]]:
        found = await super().get_prompt_messages(state)
        if state["asked"] == 2:
            state["final_env_response"] = [{"role": "user", "content": "Enough."}]
        return found


class Breaks(ThreeQuestions):
    """Notes an error in its state, as these environments do."""

    async def is_completed(self, state: dict[str, Any]) -> bool:
        state["error"] = RuntimeError("the box is gone")
        return True


class Pictures(ThreeQuestions):
    """Answers with a picture."""

    async def get_prompt_messages(self, state: dict[str, Any]) -> list[Any]:
        found: list[Any] = await super().get_prompt_messages(state)
        if state["trajectory"]:
            found[-1] = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
        return found


class Parts(ThreeQuestions):
    """Answers in parts of text."""

    async def get_prompt_messages(self, state: dict[str, Any]) -> list[Any]:
        found: list[Any] = await super().get_prompt_messages(state)
        if state["trajectory"]:
            parts = [{"type": "text", "text": "Again"}, {"type": "text", "text": "!"}]
            found[-1] = {"role": "user", "content": parts}
        return found


def questions(name: str = "ThreeQuestions", **settings: Any) -> Environment:
    built: Environment = create(
        ENVIRONMENTS.parse({"type": "verifiers_env", "function": f"{HERE}:{name}", **settings})
    )
    built.prepare()
    built.reset(prompt(answer="7"), seed=0)
    return built


def test_only_what_the_environment_adds_is_observed_and_its_rubric_scores() -> None:
    environment = questions()
    assert [m.content for m in environment.step("It is 7.").messages] == ["Again, 1."]
    assert [m.content for m in environment.step("It is 8.").messages] == ["Again, 2."]
    assert environment.step("7").done
    assert environment.outcome() == pytest.approx(2 / 3)
    environment.close()


def test_an_episode_ends_with_the_environments_final_word() -> None:
    environment = questions("EndsItself")
    assert not environment.step("7").done
    assert environment.step("7").done
    environment.close()


def test_the_rubrics_reward_is_scaled() -> None:
    environment = questions(low_reward=-1.0)
    environment.step("7")
    assert environment.outcome() == pytest.approx(2 / 3)
    environment.close()


def test_an_error_in_its_state_is_an_error_and_no_score() -> None:
    environment = questions("Breaks")
    with pytest.raises(RolloutError, match="the box is gone"):
        environment.step("7")
    environment.close()


def test_parts_of_text_are_joined_and_pictures_refused() -> None:
    environment = questions("Parts")
    assert environment.step("7").messages[0].content == "Again!"
    environment.close()
    environment = questions("Pictures")
    with pytest.raises(RolloutError, match="no text"):
        environment.step("7")
    environment.close()


def test_what_cannot_be_stepped_from_outside_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no MultiTurnEnv.*docs/environments\.md"):
        questions("nothing")
    with pytest.raises(ConfigurationError, match="no display"):
        questions("fails")


class Rubric:
    """As the package's: it logs what a function raises, and goes on with 0.0."""

    def __init__(self, *funcs: Any, weights: list[float] | None = None) -> None:
        self.funcs = list(funcs)
        self.weights = weights or [1.0] * len(self.funcs)

    async def score_rollout(self, state: dict[str, Any]) -> None:
        state["reward"] = 0.0
        for func, weight in zip(self.funcs, self.weights, strict=True):
            known = inspect.signature(func).parameters
            given = {"answer": state["answer"], "completion": state["said"], "state": state}
            try:
                found = func(**{k: v for k, v in given.items() if k in known})
                score = float(await found if inspect.isawaitable(found) else found)
            except Exception:
                score = 0.0
            state["reward"] += weight * score


class Group(Rubric):
    """A rubric of rubrics."""

    def __init__(self, *rubrics: Rubric) -> None:
        super().__init__()
        self.rubrics = list(rubrics)

    async def score_rollout(self, state: dict[str, Any]) -> None:
        total = 0.0
        for rubric in self.rubrics:
            await rubric.score_rollout(state)
            total += state["reward"]
        state["reward"] = total


def says_answer(completion: list[str], answer: str) -> float:
    return float(any(answer in text for text in completion))


async def asks_a_dead_judge(completion: list[str]) -> float:
    await asyncio.sleep(0)
    raise ConnectionError("the judge does not answer")


def raises(state: dict[str, Any]) -> float:
    raise KeyError("gold")


def forgets_to_return(answer: str) -> None:
    return None


def ranks(completions: list[list[str]]) -> list[float]:
    return [0.0 for _ in completions]


def all_alike(state: dict[str, Any]) -> list[float]:
    return [1.0]


RUBRICS: dict[str, Any] = {
    "right": lambda: Rubric(says_answer),
    "raises": lambda: Rubric(says_answer, raises),
    "judge": lambda: Group(Rubric(says_answer), Rubric(asks_a_dead_judge)),
    "nothing": lambda: Rubric(forgets_to_return),
    "metric": lambda: Rubric(says_answer, raises, weights=[1.0, 0.0]),
    "group": lambda: Group(Rubric(says_answer), Rubric(ranks)),
    "list": lambda: Rubric(all_alike),
}


class Scored(ThreeQuestions):
    """Scored by one of the rubrics above."""

    def __init__(self, rubric: str = "right", **more: Any) -> None:
        super().__init__()
        self.rubric = RUBRICS[rubric]()
        for name, value in more.items():
            setattr(self, name, value)


def scored(rubric: str, said: str, answer: Json) -> float:
    built: Environment = create(
        ENVIRONMENTS.parse(
            {"type": "verifiers_env", "function": f"{HERE}:Scored", "arguments": {"rubric": rubric}}
        )
    )
    built.prepare()
    built.reset(prompt(answer=answer), seed=0)
    built.step(said)
    try:
        score = built.outcome()
    finally:
        built.close()
    assert isinstance(score, float)
    return score


@pytest.mark.parametrize(
    ("rubric", "told"),
    [
        ("raises", "raises: KeyError: 'gold'"),
        ("judge", "asks_a_dead_judge: ConnectionError: the judge does not answer"),
        ("nothing", "forgets_to_return: TypeError"),
    ],
)
def test_what_a_rubric_raises_is_an_error_and_no_loss(rubric: str, told: str) -> None:
    assert scored("right", "It is 7.", "7") == 1.0
    for _ in range(2):  # the functions are watched again in the next episode
        with pytest.raises(RolloutError, match=told):
            scored(rubric, "It is 7.", "7")


def test_a_metric_without_weight_may_fail() -> None:
    assert scored("metric", "It is 7.", "7") == 1.0


@pytest.mark.parametrize("answer", [0, False, 0.0])
def test_an_answer_that_counts_as_nothing_in_python_is_kept(answer: Json) -> None:
    assert scored("right", "banana", answer) == 0.0
    assert scored("right", json.dumps(answer), answer) == 1.0


@pytest.mark.parametrize("rubric", ["group", "list"])
def test_a_rubric_that_scores_attempts_together_is_refused_before_the_run(rubric: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a group of attempts together.*Fix: "):
        questions("Scored", arguments={"rubric": rubric})


@pytest.mark.parametrize(
    "tools",
    [
        {"tool_defs": [{"name": "search", "description": "", "parameters": {}}]},
        {"oai_tools": [{"type": "function", "function": {"name": "search"}}]},
        {"tools": ["search"]},
    ],
)
def test_an_environment_that_offers_tools_is_refused_before_the_run(tools: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"offers tools.*tool_loop"):
        questions("Scored", arguments=tools)
    questions("Scored", arguments={name: [] for name in tools}).close()


def test_its_system_prompt_and_examples_stand_before_the_prompt() -> None:
    example = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}]
    frame = {"system_prompt": "Count.", "few_shot": example}
    environment = questions("Scored", arguments=frame)
    found = [(m.role, m.content) for m in environment.framed(prompt())]
    head = [("system", "Count."), ("user", "1?"), ("assistant", "1.")]
    assert found == [*head, ("user", "Play.")]
    assert [m.content for m in environment.step("7").messages] == ["Again, 1."]
    environment.close()
    own = Prompt(id="q", messages=(Message(role="system", content="Mine."), *prompt().messages))
    roles = [(m.role, m.content) for m in environment.framed(own)]
    assert roles == [("system", "Mine."), *head[1:], ("user", "Play.")]
