"""Who wrote an attempt: recorded only where it was not the policy, and its log-probs are then nobody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import (
    Author,
    Feedback,
    Message,
    Prompt,
    ScoredGroup,
    StopReason,
    Trajectory,
    Turn,
)
from policies.base.seeds import derive_rng
from policies.examples.builder import PREFERENCES
from policies.examples.kinds import TokenSequence
from policies.storage.artifacts import content_digest, read_records, write_records
from tests.support.attempts import attempt

UNKNOWN = Turn(role="policy", token_ids=(7, 8), text="56", stop_reason=StopReason.STOP)


def test_the_policys_own_attempts_are_written_as_before(tmp_path: Path) -> None:
    own = attempt("56")
    assert not {"author", "derived_from"} & own.model_dump().keys()
    foreign = attempt("56", turns=(UNKNOWN,), author=Author.EDIT, derived_from="t1")
    assert content_digest([own]) != content_digest([foreign])
    write_records(tmp_path / "t.parquet", Trajectory, [own, foreign])
    found = read_records(tmp_path / "t.parquet", Trajectory)
    assert found == [own, foreign]
    assert content_digest(found) == content_digest([own, foreign])


def test_an_attempt_of_the_policy_without_log_probs_is_refused() -> None:
    with pytest.raises(ValueError, match="no log-probs"):
        attempt("56", turns=(UNKNOWN,))
    with pytest.raises(ValueError, match="1 log-probs, expected 2"):
        Turn(
            role="policy", token_ids=(1, 2), text="", logprobs=(-1.0,), stop_reason=StopReason.STOP
        )


def test_log_probs_of_another_author_never_reach_the_trainer() -> None:
    recorded = UNKNOWN.model_copy(update={"logprobs": (-0.5, -0.5)})
    for turn in (UNKNOWN, recorded):
        sequence = TokenSequence.of(attempt("56", turns=(turn,), author=Author.LOG))
        assert sequence.logprobs == ()
        assert sequence.loss_mask == (0, 1, 1)


def group(*scored: tuple[Trajectory, float | None]) -> ScoredGroup:
    return ScoredGroup(
        prompt=Prompt(id="p", messages=(Message(role="user", content="?"),)),
        trajectories=tuple(t for t, _ in scored),
        feedback=tuple(
            Feedback(
                trajectory_id=t.id,
                score=score,
                desirable=None if score is None else score >= 0.5,
                unusable_because="all_abstained" if score is None else None,
            )
            for t, score in scored
        ),
    )


def built(of: ScoredGroup, **settings: Any) -> tuple[list[str], dict[str, int]]:
    made = create(PREFERENCES.parse({"type": "revisions", **settings})).build(of, derive_rng(0))
    return [e.id for e in made.examples], dict(made.dropped)


def revision(name: str, origin: str, token: int) -> Trajectory:
    turn = Turn(role="policy", token_ids=(token,), text="56", stop_reason=StopReason.STOP)
    return attempt("", name=name, turns=(turn,), author=Author.EDIT, derived_from=origin)


def test_a_revision_is_chosen_over_its_origin_where_the_verdicts_say_so() -> None:
    better, worse, lonely = (
        revision(n, o, i) for i, (n, o) in enumerate((("b", "a"), ("d", "c"), ("f", "e")))
    )
    turns = [
        attempt("", name=n).turns[0].model_copy(update={"token_ids": (20 + i,)})
        for i, n in enumerate("ace")
    ]
    a, c, e = (attempt("", name=n, turns=(t,)) for n, t in zip("ace", turns, strict=True))
    of = group((a, 0.2), (better, 0.9), (c, 0.9), (worse, 0.2), (e, None), (lonely, 1.0))
    assert built(of)[0] == ["b>a"]
    assert built(of)[1] == {"unusable: all_abstained": 1, "not_better": 1, "without_origin": 1}
    assert built(of, margin=0.8)[0] == []
    assert built(group((a, 1.0)))[1] == {"not_revised": 1}
