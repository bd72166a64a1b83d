"""Self-refinement: answer, critique, revision in one trajectory, and which of them is graded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import Ending, Message, Prompt, Sampling, Trajectory, TrajectoryStatus
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, RolloutEngine
from workers.rollout.strategies.self_refine import Instructions, SelfRefine
from workers.rollout.strategy import STRATEGIES, RolloutJob


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


def settings(**changes: Any) -> SelfRefine.Config:
    config = STRATEGIES.parse({"type": "self_refine", **changes})
    assert isinstance(config, SelfRefine.Config)
    return config


def sample(engine: RolloutEngine, max_tokens: int = 64, **changes: Any) -> Trajectory:
    prompt = Prompt(id="p", messages=(Message(role="user", content="What is 3 times 7?"),))
    built: SelfRefine = create(settings(**changes))
    built.prepare(engine)
    (found,) = built.run(RolloutJob((prompt,), 1, Sampling(max_tokens=max_tokens), "r1", 0), engine)
    built.close()
    return found


def policy_texts(trajectory: Trajectory) -> list[str]:
    return [turn.text for turn in trajectory.turns if turn.role == "policy"]


@pytest.mark.parametrize("rounds", [1, 2])
def test_each_round_is_a_critique_and_a_revision(engine: RolloutEngine, rounds: int) -> None:
    found = sample(engine, rounds=rounds, critique="Criticise it.", revise="Revise it.")
    assert (found.status, found.ending) == (TrajectoryStatus.COMPLETE, Ending.ANSWERED)
    said = [turn.text for turn in found.turns if turn.role == "observation"]
    assert said == ["Criticise it.", "Revise it."] * rounds
    assert len(policy_texts(found)) == 2 * rounds + 1


def test_the_revision_is_graded_or_the_first_answer(engine: RolloutEngine) -> None:
    revised = sample(engine, grade="revision")
    assert revised.completion == policy_texts(revised)[-1]
    first = sample(engine, grade="answer")
    assert first.completion == policy_texts(first)[0]
    assert policy_texts(first)[0] != policy_texts(first)[-1]


def test_instructions_are_masked_and_every_policy_turn_is_scored(engine: RolloutEngine) -> None:
    found = sample(engine)
    scored = bytes(
        i for i, m in zip(found.token_ids, found.loss_mask, strict=True) if m and i < 256
    ).decode()
    assert scored == "".join(policy_texts(found))
    assert settings().critique not in scored


def test_a_conversation_cut_in_a_critique_is_graded_by_the_answer_before_it(
    engine: RolloutEngine,
) -> None:
    full = sample(engine)
    first, critique = (len(full.turns[i].token_ids) for i in (0, 2))
    instruction = len(full.turns[1].token_ids)
    found = sample(engine, max_trajectory_tokens=first + instruction + critique - 2)
    assert found.status is TrajectoryStatus.TRUNCATED
    assert len(policy_texts(found)) == 2
    assert found.completion == policy_texts(found)[0]


@pytest.mark.parametrize(("replied", "graded"), [(0, None), (1, 0), (2, 0), (3, 2), (4, 2), (5, 4)])
def test_the_newest_revision_written_to_its_end_is_graded(replied: int, graded: int | None) -> None:
    partner = Instructions(settings(rounds=2))
    for turn in range(replied):
        partner.reply("words", turn)
    assert partner.outcome().graded_turn == graded


def test_too_few_turns_for_the_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="Fix: max_turns: 9, or fewer rounds"):
        settings(rounds=4)
    assert settings(rounds=4, max_turns=9).rounds == 4
