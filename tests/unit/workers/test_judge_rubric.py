"""The rubric judge: ratings mapped to [0, 1], votes averaged, unreadable ratings never scored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from policies.base.component import create
from policies.base.records import (
    Message,
    Prompt,
    VerdictStatus,
)
from tests.support.attempts import attempt
from workers.judge.judge import JUDGES, JudgeBackend, JudgeJob, Judgement, Question, Reply


class Queue(JudgeBackend):
    """Gives the next reply, whatever is asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.questions: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        self.questions += questions
        return [Reply(text=self.texts.pop(0)) for _ in questions]

    def identity(self) -> str:
        return "queue"


def rated(backend: Queue, completions: Sequence[str], **settings: object) -> Judgement:
    trajectories = tuple(
        attempt(text, name=f"t{i}", sample_index=i) for i, text in enumerate(completions)
    )
    prompt = Prompt(id="p", messages=(Message(role="user", content="2+2?"),), answer=4)
    config = JUDGES.parse({"type": "rubric", "backend": "fake", **settings})
    job = JudgeJob(prompt=prompt, trajectories=trajectories, seed=0)
    judgement: Judgement = create(config, backend=backend).judge([job])[0]
    return judgement


def test_the_scale_is_mapped_to_zero_and_one() -> None:
    backend = Queue(["Score: 1", "Score: 5.5", "Score: 10"])
    assert [v.score for v in rated(backend, ["a", "b", "c"]).verdicts] == [0.0, 0.5, 1.0]


def test_another_scale_is_asked_for_and_read() -> None:
    backend = Queue(["Score: -1"])
    assert rated(backend, ["a"], low=-2, high=2).verdicts[0].score == 0.25
    assert "from -2 (worst) to 2 (best)" in backend.questions[0].messages[0].content


def test_a_rating_that_cannot_be_read_is_an_error_with_its_text_and_harms_no_other() -> None:
    judgement = rated(Queue(["Score: 11", "Score: 4", "As an AI, no."]), ["a", "b", "c"])
    first, second, third = judgement.verdicts
    assert (first.status, first.rationale) == (VerdictStatus.ERROR, "Score: 11")
    assert "outside 1 to 10" in (first.error or "")
    assert second.score == pytest.approx(1 / 3)
    assert (third.status, third.rationale) == (VerdictStatus.ERROR, "As an AI, no.")
    assert judgement.counts["errors"] == 2


def test_votes_are_averaged_over_those_that_can_be_read() -> None:
    backend = Queue(["Score: 10", "pass", "Score: 1"])
    verdict = rated(backend, ["a"], samples=3, temperature=0.7).verdicts[0]
    assert verdict.score == 0.5
    assert "pass" in verdict.rationale
    assert [q.vote for q in backend.questions] == [0, 1, 2]
    assert rated(Queue(["no", "no"]), ["a"], samples=2, temperature=1).verdicts[0].score is None


def test_an_empty_completion_scores_zero_without_a_call() -> None:
    backend = Queue([])
    verdict = rated(backend, [" \n"]).verdicts[0]
    assert (verdict.score, backend.questions) == (0.0, [])


@pytest.mark.parametrize(
    "settings",
    [
        {"low": 5, "high": 5},
        {"low": 9, "high": 1},
        {"samples": 3},
        {"samples": 0},
        {"high": float("nan")},
    ],
)
def test_a_scale_or_vote_that_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Config"):
        JUDGES.parse({"type": "rubric", "backend": "fake", **settings})


def test_the_answer_is_shown_only_to_prompts_that_ask_for_it(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "with-answer.txt"
    path.write_text("{prompt} {answer} {completion}\nScore: N")
    backend = Queue(["Score: 3", "Score: 3"])
    rated(backend, ["attempt"], prompt_file=str(path))
    rated(backend, ["attempt"])
    with_answer, without = (q.messages[0].content for q in backend.questions)
    assert "\n4\n" in with_answer
    assert "\n4\n" not in without
