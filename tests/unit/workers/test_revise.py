"""A revision is the revised answer on the original prompt's tokens, derived from the answer before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import (
    Author,
    Message,
    Prompt,
    Sampling,
    Trajectory,
    TrajectoryStatus,
)
from policies.storage.fake_model import write_fake_model
from tests.support.training_cases import version
from workers.rollout.engine import Generation, GenerationRequest
from workers.rollout.engines.fake import FakeEngine
from workers.rollout.strategy import STRATEGIES, RolloutJob


class NotingEngine(FakeEngine):
    """Remembers what it was asked."""

    asked: list[str]

    def _one(self, request: GenerationRequest) -> Generation:
        self.asked.append(self.chat.decode(request.prompt_token_ids))
        return super()._one(request)


@pytest.fixture
def engine(tmp_path: Path) -> NotingEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built = NotingEngine(FakeEngine.Config(type="fake"), policy=policy)
    built.asked = []
    return built


def run(engine: FakeEngine, samples: int = 4, **settings: Any) -> list[Trajectory]:
    prompt = Prompt(id="p", messages=(Message(role="user", content="What is 3 times 7?"),))
    job = RolloutJob((prompt,), samples, Sampling(max_tokens=64), "r1", 0)
    return list(create(STRATEGIES.parse({"type": "revise", **settings})).run(job, engine))


def test_every_second_attempt_revises_the_one_before_it(engine: NotingEngine) -> None:
    found = run(engine, 5)
    assert [t.author for t in found] == [Author.POLICY, Author.EDIT] * 2 + [Author.POLICY]
    assert [t.derived_from for t in found] == [None, "r1.p.0", None, "r1.p.2", None]
    assert len({t.prompt_token_ids for t in found}) == 1, "re-homed on the original prompt"
    for each in found[1:4:2]:
        assert len(each.turns) == 1
        assert each.turns[0].logprobs == ()


def test_the_policy_reads_its_answer_and_the_instructions(engine: NotingEngine) -> None:
    found = run(engine, 2, critique="Criticise it.", instruction="Revise it.")
    first, critique, revision = engine.asked
    assert "Criticise it." not in first
    assert found[0].completion in critique
    assert critique.endswith("Criticise it.</user><assistant>")
    assert revision.endswith("Revise it.</user><assistant>")
    assert critique in revision or revision.startswith(critique[: len(first)])


def test_what_cannot_be_revised_is_an_error_that_names_its_origin(engine: NotingEngine) -> None:
    engine.max_context = 90
    found = run(engine, 2)
    assert found[0].status is TrajectoryStatus.COMPLETE
    assert (found[1].status, found[1].derived_from) == (TrajectoryStatus.ERROR, "r1.p.0")
    assert "the engine takes 90" in (found[1].error or "")
