"""The tool loop: calls, observations, and whatever a policy writes that is no call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from policies.base.component import Component, ComponentConfigError, create
from policies.base.errors import ConfigurationError
from policies.base.records import (
    Ending,
    Json,
    Message,
    Prompt,
    Sampling,
    StopReason,
    ToolCall,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
)
from policies.storage.fake_model import write_fake_model
from tests.support.chat_formats import chat_of
from tests.support.scripted_engine import ScriptedEngine
from tests.support.training_cases import version
from workers.rollout.call_format import CallFormat, Parsed, RequestedCall
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.engine import ENGINES, Generation, GenerationRequest, RolloutEngine
from workers.rollout.engines.fake import TERMINATOR, FakeChat
from workers.rollout.strategies.tool_loop import ToolLoop
from workers.rollout.strategy import STRATEGIES, RolloutJob
from workers.rollout.tool import Tool, ToolOutput, ToolSession

OK, FAILED = ToolCallStatus.OK, ToolCallStatus.FAILED


class Counting(Tool):
    """Answers with how often it was called in this trajectory."""

    opened: ClassVar[list[int]] = []
    closed: ClassVar[list[int]] = []
    prepared: ClassVar[list[str]] = []

    class Config(Tool.Config):
        """Settings of `Counting`."""

        refuse: bool = False
        """Cannot work on this machine."""
        status: ToolCallStatus = OK
        """Of every call."""
        raises: bool = False
        """Against the rules of the seam."""

    config: Config

    def prepare(self) -> None:
        if self.config.refuse:
            raise ConfigurationError("not on this machine")
        self.prepared.append(self.config.called)

    def schema(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.config.called}}

    def open(self, seed: int) -> ToolSession:
        self.opened.append(seed)
        return _CountingSession(self.config)


class _CountingSession(ToolSession):
    def __init__(self, config: Counting.Config) -> None:
        self._config = config
        self._calls = 0

    def call(self, arguments: Mapping[str, Json]) -> ToolOutput:
        if self._config.raises:
            raise OSError("dead")
        self._calls += 1
        return ToolOutput(f"{arguments.get('x')}={self._calls}", self._config.status)

    def close(self) -> None:
        Counting.closed.append(self._calls)


class Lines(CallFormat):
    """A line `!name x` is a call; a line `?` is one that cannot be read."""

    offers_schemas = True

    class Config(Component.Config):
        """Settings of `Lines`."""

        role: str = "user"
        """Role of observations."""

    config: Config

    def parse(self, text: str) -> Parsed:
        if "?" in text:
            return Parsed(problem="what is that")
        calls = [line[1:].split() for line in text.splitlines() if line.startswith("!")]
        return Parsed(tuple(RequestedCall(name, {"x": x}) for name, x in calls))

    def messages(self, results: Sequence[tuple[str, ToolOutput]]) -> tuple[Message, ...]:
        return tuple(Message(role=self.config.role, content=o.text) for _, o in results)


@pytest.fixture(autouse=True)
def fresh() -> None:
    for record in (Counting.opened, Counting.closed, Counting.prepared):
        record.clear()


def loop(*tools: dict[str, Any], calls: Any = None, **settings: Any) -> ToolLoop:
    configs = [Counting.Config(type="counting", **{"name": "a", **t}) for t in tools or ({},)]
    config = ToolLoop.Config(
        type="tool_loop",
        tools=tuple(configs),
        calls=calls or Lines.Config(type="lines"),
        **settings,
    )
    return ToolLoop(config)


def said(*turns: str) -> Callable[[GenerationRequest], Generation]:
    """The policy says these turns."""

    def script(request: GenerationRequest) -> Generation:
        text = turns[request.prompt_token_ids.count(TERMINATOR)]
        ids = (*text.encode(), TERMINATOR)
        return Generation(ids, (-0.1,) * len(ids), text, StopReason.STOP)

    return script


def run(strategy: ToolLoop, *turns: str, samples: int = 1) -> list[Trajectory]:
    prompt = Prompt(id="p", messages=(Message(role="user", content="go"),))
    job = RolloutJob((prompt,), samples, Sampling(), "r1", 0)
    engine = ScriptedEngine(FakeChat(), said(*turns))
    return list(strategy.run(job, engine))


def calls_of(trajectory: Trajectory) -> list[tuple[str, str]]:
    return [(c.tool, c.status.value) for t in trajectory.turns for c in t.calls]


def test_a_call_is_answered_and_a_turn_without_one_is_the_answer() -> None:
    (trajectory,) = run(loop(), "let me see\n!a 5", "it is 5")
    assert [t.text for t in trajectory.turns] == ["let me see\n!a 5", "5=1", "it is 5"]
    assert trajectory.turns[1].calls == (ToolCall(tool="a", status=OK),)
    assert trajectory.ending is Ending.ANSWERED
    assert trajectory.completion == "it is 5"


def test_calls_of_one_turn_run_in_order_on_the_same_session() -> None:
    (trajectory,) = run(loop(), "!a 1\n!a 2\n!a 3", "!a 4", "done")
    assert trajectory.turns[1].text == "1=1\n2=2\n3=3"
    assert trajectory.turns[3].text == "4=4"
    assert Counting.closed == [4]


def test_every_trajectory_has_a_session_and_a_seed_of_its_own() -> None:
    run(loop(), "!a 1", "done", samples=3)
    assert len(set(Counting.opened)) == 3
    assert Counting.closed == [1, 1, 1]


@pytest.mark.parametrize(
    ("turn", "shown", "call"),
    [
        ("?", "Error: what is that", ("a", "unparseable")),
        ("!b 1", "Error: there is no tool 'b'; there is a", ("b", "unknown_tool")),
    ],
)
def test_what_is_no_call_is_told_to_the_policy_and_costs_a_turn(
    turn: str, shown: str, call: tuple[str, str]
) -> None:
    (trajectory,) = run(loop(max_turns=2), turn, "!a 1")
    assert trajectory.turns[1].text == shown
    assert calls_of(trajectory) == [call, ("a", "ok")]
    assert trajectory.ending is Ending.TURN_LIMIT
    assert trajectory.status is TrajectoryStatus.TRUNCATED


def test_one_bad_call_among_good_ones_does_not_stop_them() -> None:
    (trajectory,) = run(loop(), "!a 1\n!b 2\n!a 3", "done")
    assert calls_of(trajectory) == [("a", "ok"), ("b", "unknown_tool"), ("a", "ok")]


def test_a_tool_that_fails_is_an_observation_and_one_that_is_missing_is_our_error() -> None:
    (failed,) = run(loop({"status": "failed"}), "!a 1", "done")
    assert failed.status is TrajectoryStatus.COMPLETE
    (missing,) = run(loop({"status": "unavailable"}), "!a 1", "done")
    assert missing.status is TrajectoryStatus.ERROR
    assert calls_of(missing) == [("a", "unavailable")]
    (broken,) = run(loop({"raises": True}), "!a 1", "done")
    assert broken.status is TrajectoryStatus.ERROR
    assert "OSError: dead" in str(broken.error)


def test_schemas_are_shown_when_the_format_wants_them() -> None:
    strategy = loop({}, {"name": "b"})
    prompt = Prompt(id="p", messages=(Message(role="user", content="go"),))
    chat = chat_of("chatml_tools")
    prompts: list[str] = []

    def script(request: GenerationRequest) -> Generation:
        prompts.append(chat.decode(request.prompt_token_ids))
        return Generation((), (), "", StopReason.STOP)

    strategy.run(RolloutJob((prompt,), 1, Sampling(), "r1", 0), ScriptedEngine(chat, script))
    assert '{"name": "a"}' in prompts[0]
    assert '{"name": "b"}' in prompts[0]


def test_preparing_prepares_every_tool_and_tries_the_role_of_observations() -> None:
    def silent(request: GenerationRequest) -> Generation:
        raise AssertionError("preparing samples nothing")

    loop({}, {"name": "b"}).prepare(ScriptedEngine(chat_of("chatml_tools"), silent))
    assert Counting.prepared == ["a", "b"]
    with pytest.raises(ConfigurationError, match="not on this machine"):
        loop({"refuse": True}).prepare(ScriptedEngine(chat_of("chatml"), silent))
    with pytest.raises(ConfigurationError, match="role tool"):
        loop(calls=Lines.Config(type="lines", role="tool")).prepare(
            ScriptedEngine(chat_of("mistral").configured(ChatSettings(tools="text")), silent)
        )
    with pytest.raises(ConfigurationError, match="does not tell the policy of its tools"):
        loop({}).prepare(ScriptedEngine(chat_of("chatml"), silent))


def test_two_tools_of_one_name_and_a_format_without_its_tool_are_refused_in_the_config() -> None:
    with pytest.raises(ValueError, match="two tools are called 'a'"):
        loop({}, {})
    with pytest.raises(ComponentConfigError, match="calls the tool 'python'"):
        STRATEGIES.parse({"type": "tool_loop", "tools": [{"type": "calculator"}]})


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.6), number=1)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


def test_the_fake_engine_writes_code_with_its_skill_and_answers_what_it_reads(
    engine: RolloutEngine,
) -> None:
    strategy = loop({"name": "python"}, calls=Fenced.Config(type="fenced"))
    prompts = tuple(
        Prompt(
            id=f"p{n}",
            messages=(
                Message(role="system", content="You solve problems with Python."),
                Message(role="user", content=f"What is {n} times 7 plus 2?"),
            ),
        )
        for n in range(20)
    )
    job = RolloutJob(prompts, 4, Sampling(), "r1", 0)
    found = strategy.run(job, engine)
    used = [t for t in found if calls_of(t)]
    assert 0.4 < len(used) / len(found) < 0.8
    for trajectory in used:
        number = int(trajectory.prompt_id[1:])
        assert f"print({number} * 7 + 2)" in trajectory.turns[0].text
        assert trajectory.completion == "The answer is 42."
    assert strategy.run(job, engine) == found, "equal seeds give equal trajectories"


class Fenced(CallFormat):
    """Any code fence is a call that outputs 42."""

    def parse(self, text: str) -> Parsed:
        return Parsed((RequestedCall("python", {"x": "Output: 42"}),) if "```" in text else ())

    def messages(self, results: Sequence[tuple[str, ToolOutput]]) -> tuple[Message, ...]:
        return (Message(role="user", content=results[0][1].text.removesuffix("=1")),)
