"""Attempts vote by their answers: the majority's is taken for right, and no ground truth is read."""

from __future__ import annotations

from typing import Any

import pytest

from policies.base.component import create
from policies.base.records import Message, Prompt, Verdict, VerdictStatus
from tests.support.attempts import attempt
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.verifier import VERIFIERS, Verifier

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),), answer="7")
OTHER = Prompt(id="q", messages=(Message(role="user", content="?"),))


def config_of(**settings: Any) -> Verifier.Config:
    config = VERIFIERS.parse({"type": "majority_vote", **settings})
    assert isinstance(config, Verifier.Config)
    return config


def voted(*texts: str, **settings: Any) -> list[Verdict]:
    verifier: Verifier = create(config_of(**settings))
    attempts = [attempt(text, name=str(i), sample_index=i) for i, text in enumerate(texts)]
    return verifier.verify_group(PROMPT, attempts)


def scores(verdicts: list[Verdict]) -> list[float | None]:
    return [verdict.score for verdict in verdicts]


def test_what_most_answered_is_right_whatever_the_prompt_calls_right() -> None:
    verdicts = voted("It is 56.", "so 56", "7", "<answer>56.0</answer>")
    assert scores(verdicts) == [1.0, 1.0, 0.0, 1.0]
    assert [v.metrics["vote_share"] for v in verdicts] == [0.75, 0.75, 0.25, 0.75]
    assert scores(voted("7", "7", "7", "56")) == [1.0, 1.0, 1.0, 0.0], "another majority"


def test_the_share_of_the_votes_can_be_the_score_also_of_a_tie() -> None:
    assert scores(voted("1", "1", "2", "2", score="share")) == [0.5] * 4
    assert scores(voted("1", "1", "1", "2", "?", score="share")) == [0.75, 0.75, 0.75, 0.25, 0.0]


@pytest.mark.parametrize(
    ("texts", "settings", "why"),
    [
        (("1", "1", "2", "2"), {}, "a tie: two answers with 2 of 4 votes"),
        (("1", "1", "none", ""), {}, "2 attempts answered, min_votes is 3"),
        (("1", "1", "2", "3"), {"min_share": 0.6}, "the majority has 2 of 4 votes"),
        (("1",), {}, "1 attempts answered"),
    ],
)
def test_without_a_majority_no_answer_is_scored(
    texts: tuple[str, ...], settings: dict[str, Any], why: str
) -> None:
    verdicts = voted(*texts, **settings)
    answered = [v for v, text in zip(verdicts, texts, strict=True) if text.isdigit()]
    assert {v.status for v in answered} == {VerdictStatus.ABSTAINED}
    assert why in answered[0].rationale
    assert [v.score for v in verdicts if v not in answered] == [0.0] * (len(texts) - len(answered))


def test_an_attempt_without_an_answer_has_no_vote_and_is_wrong() -> None:
    assert scores(voted("4", "4", "4", "I do not know.")) == [1.0, 1.0, 1.0, 0.0]


def test_texts_agree_but_for_case_and_blanks() -> None:
    assert scores(voted("Paris ", "paris", "Rome", "PARIS", compares="text")) == [1, 1, 0, 1]


def test_steps_have_no_vote() -> None:
    with pytest.raises(ValueError, match="level: trajectory"):
        config_of(level="step")


def test_its_process_is_asked_about_all_attempts_at_a_prompt_at_once() -> None:
    first = [(PROMPT, attempt(t, name=f"p{i}")) for i, t in enumerate(("5", "5", "6"))]
    second = [(OTHER, attempt(t, name=f"q{i}")) for i, t in enumerate(("6", "6", "5"))]
    with IsolatedVerifier(config_of()) as verifier:
        found = verifier.submit([*first, *second]).result()
        assert scores(found) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
        assert verifier.first_question([*first, *second]) == 3
        left = verifier.submit(first[:2]).result()
        assert scores(left) == [None, None], "without one of them two votes are left"
