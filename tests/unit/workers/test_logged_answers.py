"""Recorded answers become attempts in the prompt's own tokens, beside or instead of sampled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.errors import VerificationError
from policies.base.records import (
    Author,
    Message,
    Prompt,
    Sampling,
    Trajectory,
    TrajectoryStatus,
    VerdictStatus,
)
from policies.storage.fake_model import write_fake_model
from tests.support.attempts import attempt
from tests.support.training_cases import version
from workers.rollout.engine import ENGINES, RolloutEngine
from workers.rollout.engines.fake import TERMINATOR
from workers.rollout.strategy import STRATEGIES, RolloutJob
from workers.verify.verifier import VERIFIERS

QUESTION = Message(role="user", content="What is 7 times 8?")
SIDES = ["chosen", "rejected"]


@pytest.fixture
def engine(tmp_path: Path) -> RolloutEngine:
    policy = version(write_fake_model(tmp_path / "model", skill=0.5), number=3)
    built: RolloutEngine = create(ENGINES.parse("fake"), policy=policy)
    return built


def prompt(**metadata: Any) -> Prompt:
    return Prompt(id="p", messages=(QUESTION,), answer=56, metadata=metadata)


def run(
    engine: RolloutEngine, given: Prompt, samples: int = 2, first: int = 0, **settings: Any
) -> list[Trajectory]:
    job = RolloutJob((given,), samples, Sampling(), scope="r1", seed=0, first_sample=first)
    return list(create(STRATEGIES.parse({"type": "logged_answers", **settings})).run(job, engine))


def test_answers_stand_on_the_prompts_tokens_in_the_order_of_the_columns(
    engine: RolloutEngine,
) -> None:
    chat = [{"role": "assistant", "content": "55"}]
    for other in ("55", chat, [chat], [QUESTION.model_dump(), *chat]):
        found = run(engine, prompt(chosen="56 </assistant>", rejected=other), columns=SIDES)
        assert [t.author for t in found] == [Author.LOG] * 2
        assert [t.completion for t in found] == ["56 </assistant>", "55"]
        assert found[0].turns[0].token_ids == (*b"56 </assistant>", TERMINATOR)
        assert found[1].token_ids == (*engine.render([QUESTION]), *b"55", TERMINATOR)
        assert [t.turns[0].logprobs for t in found] == [(), ()]


def test_the_rest_of_the_attempts_is_sampled(engine: RolloutEngine) -> None:
    found = run(engine, prompt(answers=["56", "57", "58"]), 4, answers=2)
    assert [t.sample_index for t in found] == [0, 1, 2, 3]
    assert [t.author for t in found] == [Author.LOG, Author.LOG, Author.POLICY, Author.POLICY]
    assert found[2].id != found[3].id
    shares = run(engine, prompt(answers=["56"]), 2, first=4)
    assert [t.author for t in shares] == [Author.POLICY] * 2, "a share of a mixture samples"


def test_a_missing_answer_is_an_error_or_sampled_as_it_is_set(engine: RolloutEngine) -> None:
    lacking = run(engine, prompt(answers="56"))
    assert [t.status for t in lacking] == [TrajectoryStatus.COMPLETE, TrajectoryStatus.ERROR]
    assert "Fix: " in (lacking[1].error or "")
    sampled = run(engine, prompt(answers="56"), missing="sample")
    assert [t.author for t in sampled] == [Author.LOG, Author.POLICY]
    for bad in (5, {"a": 1}, [[{"role": "user", "content": "?"}]]):
        assert {t.status for t in run(engine, prompt(answers=bad))} == {TrajectoryStatus.ERROR}


def test_the_log_is_believed_about_its_own_answers_alone() -> None:
    given = prompt(chosen="It is 56.", rejected=[{"role": "assistant", "content": "55"}])
    verifier = create(VERIFIERS.parse("recorded_choice"))
    scores = [verifier.verify(given, attempt(t)).score for t in ("It is 56.", "55", "")]
    assert scores == [1.0, 0.0, 0.0]
    assert verifier.verify(given, attempt("60")).status is VerdictStatus.ABSTAINED
    verifier.check_prompt(given)
    with pytest.raises(VerificationError, match="there are none"):
        verifier.check_prompt(prompt())
