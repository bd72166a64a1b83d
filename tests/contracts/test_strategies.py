"""What every rollout strategy promises: K attempts per prompt, complete at birth, equal for equal seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import Author, Ending, Message, Prompt, Sampling, TrajectoryStatus
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, RolloutEngine
from workers.rollout.strategy import STRATEGIES, RolloutJob, RolloutStrategy

PROMPTS = tuple(
    Prompt(
        id=f"{a}x7",
        messages=(
            Message(role="system", content="You solve problems with Python."),
            Message(role="user", content=f"What is {a} times 7?"),
        ),
        answer=7 * a,
        metadata={
            "demonstration": [{"role": "assistant", "content": f"The answer is {7 * a}."}],
            "answers": [f"It is {7 * a + wrong}." for wrong in range(4)],
        },
    )
    for a in range(2, 5)
)
SETTINGS: dict[str, dict[str, Any]] = {
    "tool_loop": {
        "tools": [{"type": "calculator"}],
        "calls": {"type": "fenced_code", "tool": "calculator", "argument": "expression"},
    },
    "logged_answers": {"answers": 4},
    "episode": {"environment": {"type": "guess_number"}},
}
"""What a strategy cannot do without."""


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


@pytest.fixture(params=sorted(STRATEGIES.members()))
def strategy(request: pytest.FixtureRequest, engine: RolloutEngine) -> Iterator[RolloutStrategy]:
    settings = {"type": request.param, **SETTINGS.get(request.param, {})}
    built: RolloutStrategy = create(STRATEGIES.parse(settings))
    built.prepare(engine)
    yield built
    built.close()


def job(seed: int = 0, max_tokens: int = 64, first_sample: int = 0) -> RolloutJob:
    return RolloutJob(
        PROMPTS,
        4,
        Sampling(max_tokens=max_tokens),
        scope="r1",
        seed=seed,
        first_sample=first_sample,
    )


def test_each_prompt_gets_its_attempts_with_ids_of_their_own(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    found = strategy.run(job(), engine)
    assert [t.id for t in found] == [f"r1.{p.id}.{k}" for p in PROMPTS for k in range(4)]
    assert [(t.prompt_id, t.sample_index) for t in found] == [
        (p.id, k) for p in PROMPTS for k in range(4)
    ]


def test_every_trajectory_names_the_policy_that_wrote_it(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    for trajectory in strategy.run(job(), engine):
        assert trajectory.policy_version == 3
        assert trajectory.policy_digest == engine.serving.digest
        assert any(trajectory.loss_mask)


def test_equal_seeds_give_equal_trajectories_and_other_seeds_others_where_sampled(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    assert strategy.run(job(), engine) == strategy.run(job(), engine)
    is_other = strategy.run(job(seed=1), engine) != strategy.run(job(), engine)
    assert is_other is strategy.samples_policy


def test_attempts_are_numbered_from_the_first_one_asked_for(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    found = strategy.run(job(first_sample=3), engine)
    assert [t.sample_index for t in found] == [3, 4, 5, 6] * len(PROMPTS)
    assert [t.id for t in found][:2] == ["r1.2x7.3", "r1.2x7.4"]


def test_a_prompt_that_does_not_fit_the_model_is_an_error_of_its_own(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    long = PROMPTS[1].model_copy(
        update={"messages": (Message(role="user", content="What is 3 times 7? " * 40),)}
    )
    engine.max_context = 600
    found = strategy.run(RolloutJob((PROMPTS[0], long), 2, Sampling(), "r1", 0), engine)
    assert [t.status is TrajectoryStatus.ERROR for t in found] == [False, False, True, True]
    for each in found[2:]:
        assert each.ending is Ending.FAILED
        assert each.error is not None
        assert "600" in each.error


def test_scored_are_policy_turns_alone_and_the_policys_own_tokens_have_a_logprob_each(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    for trajectory in strategy.run(job(), engine):
        mask = [0] * len(trajectory.prompt_token_ids)
        for turn in trajectory.turns:
            scored = turn.role == "policy"
            known = scored and trajectory.author is Author.POLICY
            assert len(turn.logprobs) == (len(turn.token_ids) if known else 0)
            mask += [int(scored)] * len(turn.token_ids)
        assert trajectory.loss_mask == tuple(mask)


def test_a_cut_answer_is_truncated_not_complete_and_what_is_given_is_never_cut(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    found = strategy.run(job(max_tokens=2), engine)
    endings = {(t.status, t.ending) for t in found}
    if strategy.samples_policy:
        assert endings == {(TrajectoryStatus.TRUNCATED, Ending.TOKEN_LIMIT)}
    else:
        assert endings == {(TrajectoryStatus.COMPLETE, Ending.ANSWERED)}
