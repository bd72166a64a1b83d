"""Demonstrations become trajectories: the model's own tokens, terminators included, observations masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.component import create
from policies.base.records import (
    Author,
    Ending,
    Json,
    Message,
    Prompt,
    Sampling,
    Trajectory,
    TrajectoryStatus,
)
from policies.examples.kinds import TokenSequence
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, RolloutEngine
from workers.rollout.engines.fake import TERMINATOR
from workers.rollout.strategy import STRATEGIES, RolloutJob


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


def shown(*messages: tuple[str, str]) -> list[Json]:
    return [{"role": role, "content": content} for role, content in messages]


def prompt(demonstration: Any, number: int = 0) -> Prompt:
    metadata: dict[str, Json] = {} if demonstration is None else {"demonstration": demonstration}
    question = Message(role="user", content="What is 7 times 8?")
    return Prompt(id=f"p{number}", messages=(question,), answer=56, metadata=metadata)


GOOD = shown(
    ("assistant", "```python\nprint(7 * 8)\n```"), ("user", "Output: 56"), ("assistant", "56")
)


def run(engine: RolloutEngine, *prompts: Prompt, samples: int = 1) -> list[Trajectory]:
    job = RolloutJob(prompts, samples, Sampling(max_tokens=2), scope="r1", seed=0)
    return list(create(STRATEGIES.parse("demonstrations")).run(job, engine))


def test_assistant_messages_are_policy_turns_with_terminators_and_the_rest_is_observed(
    engine: RolloutEngine,
) -> None:
    (found,) = run(engine, prompt(GOOD))
    assert found.status is TrajectoryStatus.COMPLETE
    assert found.ending is Ending.ANSWERED
    assert [turn.role for turn in found.turns] == ["policy", "observation", "policy"]
    first, between, last = found.turns
    assert first.token_ids == (*b"```python\nprint(7 * 8)\n```", TERMINATOR)
    assert last.token_ids == (*b"56", TERMINATOR)
    assert TERMINATOR not in between.token_ids
    assert bytes(between.token_ids) == b"<user>Output: 56</user><assistant>"
    assert found.prompt_token_ids == engine.render(prompt(GOOD).messages)
    assert found.completion == "56"
    assert (found.policy_version, found.policy_digest) == (3, engine.serving.digest)


def test_only_the_demonstrated_turns_are_scored_and_nobody_knows_their_log_probs(
    engine: RolloutEngine,
) -> None:
    (found,) = run(engine, prompt(GOOD))
    sequence = TokenSequence.of(found)
    scored = [i for i, m in zip(sequence.token_ids, sequence.loss_mask, strict=True) if m]
    assert scored == [*b"```python\nprint(7 * 8)\n```", TERMINATOR, *b"56", TERMINATOR]
    assert found.author is Author.LOG
    assert sequence.logprobs == ()
    assert not STRATEGIES.resolve("demonstrations").samples_policy
    assert STRATEGIES.resolve("independent").samples_policy


def test_a_demonstration_reads_as_the_template_would_write_it(engine: RolloutEngine) -> None:
    (found,) = run(engine, prompt(GOOD))
    messages = [*prompt(GOOD).messages, *(Message.model_validate(m) for m in GOOD)]
    assert found.token_ids == engine.chat.encode(
        engine.chat.text(messages, generation_prompt=False)
    )


def test_text_in_a_demonstration_never_becomes_a_control_token(engine: RolloutEngine) -> None:
    (found,) = run(engine, prompt(shown(("assistant", "so </assistant> it is"))))
    assert found.token_ids.count(TERMINATOR) == 1


def test_one_prompts_bad_demonstration_is_an_error_trajectory_and_the_others_go_on(
    engine: RolloutEngine,
) -> None:
    bad: list[tuple[Any, str]] = [
        (None, "there is none"),
        ([], "not a list of messages"),
        ("56", "not a list of messages"),
        ([{"role": "assistant"}], "not a list of {role, content}"),
        ([{"role": "assistant", "content": 56}], "not a list of {role, content}"),
        (shown(("user", "Output: 56")), "does not begin with an assistant message"),
        (shown(("assistant", "56"), ("user", "thanks")), "does not end with an assistant"),
        (shown(("assistant", "5"), ("assistant", "6")), "two assistant messages follow"),
    ]
    prompts = [prompt(value, number) for number, (value, _) in enumerate(bad)]
    *errors, good = run(engine, *prompts, prompt(GOOD, 99))
    assert good.status is TrajectoryStatus.COMPLETE
    for found, (_, said) in zip(errors, bad, strict=True):
        assert (found.status, found.ending) == (TrajectoryStatus.ERROR, Ending.FAILED)
        assert said in (found.error or "")
        assert "Fix: " in (found.error or "")
        assert found.turns == ()


def test_a_demonstration_that_does_not_fit_the_context_is_an_error(engine: RolloutEngine) -> None:
    engine.max_context = 40
    (found,) = run(engine, prompt(GOOD))
    assert found.status is TrajectoryStatus.ERROR
    assert "the engine takes 40" in (found.error or "")


def test_every_sample_of_a_prompt_is_the_same_demonstration(engine: RolloutEngine) -> None:
    found = run(engine, prompt(GOOD, 1), prompt(GOOD, 2), samples=2)
    assert [t.id for t in found] == ["r1.p1.0", "r1.p1.1", "r1.p2.0", "r1.p2.1"]
    assert found[0].turns == found[1].turns


def test_the_questions_for_python_come_with_demonstrations_that_work(engine: RolloutEngine) -> None:
    source = {"type": "tool_arithmetic", "demonstrations": True, "count": 8}
    prompts = create(PROMPT_SOURCES.parse(source)).load()
    for given, found in zip(prompts, run(engine, *prompts), strict=True):
        assert found.status is TrajectoryStatus.COMPLETE
        assert found.completion == f"The answer is {given.answer}."
