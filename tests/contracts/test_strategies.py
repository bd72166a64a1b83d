"""What every rollout strategy promises: K attempts per prompt, complete at birth, equal for equal seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.component import create
from policies.fake_model import write_fake_model
from policies.records import Message, Prompt, Sampling, TrajectoryStatus
from tests.training_cases import version
from workers.rollout.engine import ENGINES, RolloutEngine
from workers.rollout.strategy import STRATEGIES, RolloutJob, RolloutStrategy

PROMPTS = tuple(
    Prompt(
        id=f"{a}x7", messages=(Message(role="user", content=f"What is {a} times 7?"),), answer=7 * a
    )
    for a in range(2, 5)
)


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


@pytest.fixture(params=sorted(STRATEGIES.members()))
def strategy(request: pytest.FixtureRequest) -> RolloutStrategy:
    built: RolloutStrategy = create(STRATEGIES.parse(request.param))
    return built


def job(seed: int = 0, max_tokens: int = 64) -> RolloutJob:
    return RolloutJob(PROMPTS, 4, Sampling(max_tokens=max_tokens), scope="r1", seed=seed)


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


def test_equal_seeds_give_equal_trajectories_and_other_seeds_others(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    assert strategy.run(job(), engine) == strategy.run(job(), engine)
    assert strategy.run(job(seed=1), engine) != strategy.run(job(), engine)


def test_a_cut_answer_is_truncated_not_complete(
    strategy: RolloutStrategy, engine: RolloutEngine
) -> None:
    statuses = {t.status for t in strategy.run(job(max_tokens=2), engine)}
    assert statuses == {TrajectoryStatus.TRUNCATED}
