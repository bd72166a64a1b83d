"""What a source's confidence in its verdict does: it scales the source's share in the score, and 0 is no opinion."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from policies.base.component import create
from policies.base.records import Feedback, Message, Prompt, Verdict, VerdictStatus
from tests.support.attempts import attempt
from workers.judge.judge import JUDGES, JudgeBackend, JudgeJob, Question, Reply
from workers.scoring.aggregate import aggregate
from workers.scoring.feedback_settings import FeedbackSettings

PROMPT = Prompt(id="p", messages=(Message(role="user", content="?"),))


def feedback(*said: tuple[str, float, float]) -> Feedback:
    """Feedback on one attempt from (source, score, confidence)."""
    verdicts = [
        Verdict(
            source=source,
            trajectory_id="t0",
            status=VerdictStatus.SCORED,
            score=score,
            confidence=confidence,
        )
        for source, score, confidence in said
    ]
    return aggregate(PROMPT, [attempt("a")], verdicts, [], FeedbackSettings()).feedback[0]


def test_confidence_scales_the_share_of_a_source() -> None:
    assert feedback(("a", 1.0, 1.0), ("b", 0.0, 1.0)).score == 0.5
    assert feedback(("a", 1.0, 1.0), ("b", 0.0, 0.5)).score == pytest.approx(1 / 1.5)


def test_a_source_alone_keeps_its_score_whatever_its_confidence() -> None:
    assert feedback(("a", 0.5, 0.3)).score == 0.5
    assert feedback(("a", 0.5, 0.3)).desirable is True


def test_a_score_without_confidence_is_an_abstention() -> None:
    assert feedback(("a", 1.0, 1.0), ("b", 0.0, 0.0)).score == 1.0
    alone = feedback(("a", 1.0, 0.0))
    assert (alone.score, alone.unusable_because) == (None, "all_abstained")


class EveryThirdFails(JudgeBackend):
    """Answers all questions but every third."""

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        good = "Winner: A" if "Winner:" in questions[0].messages[-1].content else "Score: 10"
        return [
            Reply(text=None, error="lost") if index % 3 == 2 else Reply(text=good)
            for index in range(len(questions))
        ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "rubric", "samples": 3, "temperature": 1.0}, [2 / 3, 2 / 3, 2 / 3]),
        # three comparisons of two questions each; the third and the sixth question fail, and with them two comparisons
        ({"type": "pairwise"}, [0.5, 0.5, 1.0]),
    ],
)
def test_judges_are_as_sure_as_the_share_of_their_questions_that_was_answered(
    settings: dict[str, object], expected: list[float]
) -> None:
    config = JUDGES.parse({**settings, "backend": {"type": "fake"}})
    backend = EveryThirdFails()
    job = JudgeJob(
        prompt=PROMPT,
        trajectories=tuple(attempt(f"text {i}", name=f"t{i}", sample_index=i) for i in range(3)),
        seed=0,
    )
    (judgement,) = create(config, backend=backend).judge([job])
    assert [v.confidence for v in judgement.verdicts] == pytest.approx(expected)
