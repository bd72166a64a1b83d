"""Records: masks come from who wrote a token, and what cannot be true cannot be built."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.base.records import (
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from policies.examples.kinds import PreferencePair, TokenSequence


def policy_turn(ids: list[int]) -> Turn:
    return Turn(
        role="policy",
        token_ids=tuple(ids),
        text="p",
        logprobs=tuple(-0.5 for _ in ids),
        stop_reason=StopReason.STOP,
    )


def observation(ids: list[int]) -> Turn:
    return Turn(
        role="observation", token_ids=tuple(ids), text="o", stop_reason=StopReason.OBSERVATION
    )


def trajectory(prompt: list[int], turns: list[Turn]) -> Trajectory:
    return Trajectory(
        id="r1.a.0",
        prompt_id="a",
        sample_index=0,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=tuple(prompt),
        turns=tuple(turns),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


ids = st.lists(st.integers(0, 50_000), min_size=1, max_size=12)


@given(prompt=ids, turns=st.lists(st.tuples(st.booleans(), ids), max_size=6))
def test_the_mask_is_one_exactly_on_tokens_that_the_policy_wrote(
    prompt: list[int], turns: list[tuple[bool, list[int]]]
) -> None:
    built = trajectory(prompt, [policy_turn(t) if own else observation(t) for own, t in turns])
    expected = [0] * len(prompt) + [int(own) for own, t in turns for _ in t]
    assert list(built.loss_mask) == expected
    assert len(built.token_ids) == len(built.loss_mask) == len(built.logprobs)
    assert [bool(x) for x in built.logprobs] == [bool(m) for m in expected]
    assert built.num_policy_tokens == sum(expected)


def test_the_completion_is_the_last_thing_the_policy_wrote() -> None:
    turns = [policy_turn([1]), observation([2]), policy_turn([3]), observation([4])]
    turns[2] = turns[2].model_copy(update={"text": "final"})
    assert trajectory([0], turns).completion == "final"


def test_a_policy_turn_without_a_logprob_per_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="log-probs"):
        Turn(
            role="policy", token_ids=(1, 2), text="", logprobs=(-1.0,), stop_reason=StopReason.STOP
        )


@pytest.mark.parametrize(
    ("status", "score", "error"),
    [
        (VerdictStatus.ERROR, 0.0, "boom"),
        (VerdictStatus.SCORED, None, None),
        (VerdictStatus.SCORED, 1.0, "boom"),
        (VerdictStatus.ABSTAINED, 0.5, None),
        (VerdictStatus.ERROR, None, None),
    ],
)
def test_a_verdict_is_a_score_or_an_error_or_nothing_never_two(
    status: VerdictStatus, score: float | None, error: str | None
) -> None:
    with pytest.raises(ValidationError):
        Verdict(source="v", trajectory_id="t", status=status, score=score, error=error)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_zero_to_one_is_refused(score: float) -> None:
    with pytest.raises(ValidationError):
        Verdict(source="v", trajectory_id="t", status=VerdictStatus.SCORED, score=score)


def test_records_are_frozen_and_pickle_and_survive_json() -> None:
    sequence = TokenSequence.of(trajectory([1, 2], [policy_turn([3])]))
    pair = PreferencePair(id="p", prompt_id="a", chosen=sequence, rejected=sequence, margin=1.0)
    assert pickle.loads(pickle.dumps(pair)) == pair
    assert PreferencePair.model_validate_json(pair.model_dump_json()) == pair
    with pytest.raises(ValidationError):
        pair.margin = 2.0  # type: ignore[misc]
