"""The outcome verifier: what the environment said, or no opinion."""

from __future__ import annotations

import pytest

from policies.base.component import create
from policies.base.records import Message, Prompt, Sampling, Trajectory, VerdictStatus
from workers.verify.verifier import VERIFIERS, Verifier

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Play."),))


def episode(outcome: float | None) -> Trajectory:
    return Trajectory(
        id="r1.p.0",
        prompt_id="p",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(1,),
        turns=(),
        status="complete",  # type: ignore[arg-type]
        sampling=Sampling(),
        outcome=outcome,
    )


@pytest.mark.parametrize("outcome", [0.0, 0.25, 1.0])
def test_the_score_is_the_outcome(outcome: float) -> None:
    verifier: Verifier = create(VERIFIERS.parse("outcome"))
    assert verifier.verify(PROMPT, episode(outcome)).score == outcome


def test_without_an_outcome_it_abstains() -> None:
    verifier: Verifier = create(VERIFIERS.parse("outcome"))
    verdict = verifier.verify(PROMPT, episode(None))
    assert (verdict.status, verdict.score) == (VerdictStatus.ABSTAINED, None)
