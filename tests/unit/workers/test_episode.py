"""The episode strategy: an environment's every misdeed is one trajectory's error, and what it says is recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from policies.base.component import create
from policies.base.errors import ConfigurationError
from policies.base.records import (
    Ending,
    Json,
    Message,
    Prompt,
    Sampling,
    Trajectory,
    TrajectoryStatus,
)
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, RolloutEngine
from workers.rollout.environment import Environment, Observation, observe
from workers.rollout.strategies.episode import Episode
from workers.rollout.strategy import STRATEGIES, RolloutJob

T = TypeVar("T")
RELEASE = threading.Event()
"""Lets the hanging environments go at the end of a test."""


class Scripted(Environment):
    """Does at each stage what the prompt's metadata says, e.g. {step: raise}; else it ends after `length` steps."""

    def prepare(self) -> None:
        if self.config.timeout_seconds == 99:
            raise ConfigurationError("this world cannot be here")

    def reset(self, prompt: Prompt, seed: int) -> tuple[Message, ...]:
        self.metadata = prompt.metadata
        self.taken = 0
        self.closed = False
        opening: tuple[Message, ...] = (Message(role="user", content="It begins."),)
        return self._do("reset", opening)

    def step(self, action: str) -> Observation:
        self.taken += 1
        length = self.metadata.get("length", 2)
        done = Observation(messages=(), done=True)
        return self._do("step", done if self.taken == length else observe("Go on."))

    def outcome(self) -> float | None:
        return self._do("outcome", min(1.0, self.taken / 4))

    def close(self) -> None:
        CLOSED.append(str(self.metadata.get("name")))
        self._do("close", None)

    def _do(self, stage: str, normal: T) -> T:
        what = self.metadata.get(stage)
        if what == "raise":
            raise ValueError(f"{stage} is broken")
        if what == "exit":
            raise SystemExit(3)
        if what == "hang":
            RELEASE.wait(30)
        # Garbage is of another type than was promised: that is the point.
        return cast(T, GARBAGE[str(what)]) if what in GARBAGE else normal


GARBAGE: dict[str, Any] = {
    "none": None,
    "text": "hello",
    "dicts": ({"role": "user", "content": "hi"},),
    "silence": Observation(messages=()),
    "strings": Observation(messages=("hi",)),  # type: ignore[arg-type]
    "two": 2.0,
    "nan": float("nan"),
    "number": 3,
}
CLOSED: list[str] = []


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    RELEASE.clear()
    CLOSED.clear()
    yield
    RELEASE.set()


def strategy(**settings: Any) -> Episode:
    environment = {"type": "tests.unit.workers.test_episode:Scripted", "timeout_seconds": 5}
    built: Episode = create(
        STRATEGIES.parse({"type": "episode", "environment": environment, **settings})
    )
    return built


def prompt(name: str = "p", **metadata: Json) -> Prompt:
    message = Message(role="user", content="What is 3 times 7?")
    return Prompt(id=name, messages=(message,), metadata={"name": name, **metadata})


def run(
    engine: RolloutEngine, built: Episode, *prompts: Prompt, samples: int = 1
) -> list[Trajectory]:
    found = built.run(RolloutJob(prompts, samples, Sampling(), scope="r1", seed=0), engine)
    built.close()
    return list(found)


def test_an_episode_ends_when_the_environment_says_so(engine: RolloutEngine) -> None:
    (found,) = run(engine, strategy(), prompt(length=3))
    assert [turn.role for turn in found.turns] == ["policy", "observation"] * 2 + ["policy"]
    assert (found.status, found.ending) == (TrajectoryStatus.COMPLETE, Ending.ENVIRONMENT)
    assert found.outcome == 0.75
    assert bytes(found.prompt_token_ids).decode().endswith("<user>It begins.</user><assistant>")


def test_one_that_never_ends_meets_the_turn_limit_and_has_an_outcome(engine: RolloutEngine) -> None:
    (found,) = run(engine, strategy(max_turns=3), prompt(length=-1))
    assert (found.status, found.ending) == (TrajectoryStatus.TRUNCATED, Ending.TURN_LIMIT)
    assert sum(turn.role == "policy" for turn in found.turns) == 3
    assert found.outcome == 0.75


def test_samples_of_a_prompt_share_their_prompt_tokens_and_differ_in_seed(
    engine: RolloutEngine,
) -> None:
    environment = {"type": "guess_number", "high": 1000, "guesses": 3}
    found = run(engine, strategy(environment=environment), prompt(), samples=4)
    assert len({t.prompt_token_ids for t in found}) == 1
    assert len({tuple(turn.text for turn in t.turns) for t in found}) > 1


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        (stage, what)
        for stage in ("reset", "step", "outcome")
        for what in ("raise", "exit", "none", "text", "dicts", "number")
        if (stage, what) != ("outcome", "none")  # it may have nothing to say
    ],
)
def test_what_raises_or_returns_garbage_is_an_error_of_its_trajectory_alone(
    engine: RolloutEngine, stage: str, what: str
) -> None:
    healthy, broken = run(engine, strategy(), prompt("good"), prompt("bad", **{stage: what}))
    assert healthy.status is TrajectoryStatus.COMPLETE
    assert (broken.status, broken.ending) == (TrajectoryStatus.ERROR, Ending.FAILED)
    assert broken.outcome is None
    assert broken.error is not None
    wanted = "is broken" if what == "raise" else "SystemExit" if what == "exit" else "must return"
    assert wanted in broken.error
    assert sorted(CLOSED) == ["bad", "good"]


@pytest.mark.parametrize(
    ("stage", "what"),
    [("step", "silence"), ("step", "strings"), ("outcome", "two"), ("outcome", "nan")],
)
def test_garbage_of_the_right_type_is_an_error_too(
    engine: RolloutEngine, stage: str, what: str
) -> None:
    (found,) = run(engine, strategy(), prompt(**{stage: what}))
    assert found.status is TrajectoryStatus.ERROR
    assert "Set by: rollout.strategy.environment. Fix:" in str(found.error)


@pytest.mark.parametrize("stage", ["reset", "step", "outcome"])
def test_an_environment_that_hangs_is_given_up_after_its_own_timeout(
    engine: RolloutEngine, stage: str
) -> None:
    environment = {"type": "tests.unit.workers.test_episode:Scripted", "timeout_seconds": 0.2}
    built = strategy(environment=environment, partner_timeout_seconds=600)
    healthy, stuck = run(engine, built, prompt("good"), prompt("stuck", **{stage: "hang"}))
    assert healthy.status is TrajectoryStatus.COMPLETE
    assert stuck.status is TrajectoryStatus.ERROR
    assert "did not return within 0.2 s" in str(stuck.error)


def test_no_outcome_is_none_not_zero(engine: RolloutEngine) -> None:
    (found,) = run(engine, strategy(), prompt(outcome="none"))
    assert (found.status, found.outcome) == (TrajectoryStatus.COMPLETE, None)


def test_what_cannot_work_here_is_refused_before_the_first_episode(engine: RolloutEngine) -> None:
    environment = {"type": "tests.unit.workers.test_episode:Scripted", "timeout_seconds": 99}
    with pytest.raises(ConfigurationError, match="cannot be here"):
        strategy(environment=environment).prepare(engine)
    strategy().prepare(engine)


def test_the_environment_is_named_in_the_settings() -> None:
    with pytest.raises(ValueError, match="environment"):
        STRATEGIES.parse({"type": "episode"})
    with pytest.raises(ValueError, match="did you mean 'nim'"):
        STRATEGIES.parse({"type": "episode", "environment": "nym"})
