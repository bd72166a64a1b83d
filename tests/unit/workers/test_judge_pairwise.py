"""The pairwise judge: both orders, ties kept, failures never scored, pairs spread evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from policies.base.component import create
from policies.base.records import (
    Message,
    Prompt,
    VerdictStatus,
)
from tests.support.attempts import attempt
from workers.judge.judge import JUDGES, JudgeBackend, JudgeJob, Judgement, Question, Reply
from workers.judge.judges.pairwise import choose_pairs

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Say something."),))


class Scripted(JudgeBackend):
    """Answers with a function of the two attempts that a question shows."""

    def __init__(self, rule: Callable[[str], str | Reply]) -> None:
        self.rule = rule
        self.asked: list[str] = []

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        replies: list[Reply] = []
        for question in questions:
            self.asked.append(question.messages[0].content)
            said = self.rule(question.messages[0].content)
            replies.append(said if isinstance(said, Reply) else Reply(text=said))
        return replies

    def identity(self) -> str:
        return "scripted"


def judged(backend: JudgeBackend, texts: Sequence[str], **settings: object) -> Judgement:
    config = JUDGES.parse({"type": "pairwise", "backend": "fake", **settings})
    trajectories = tuple(
        attempt(text, name=f"t{i}", sample_index=i) for i, text in enumerate(texts)
    )
    job = JudgeJob(prompt=PROMPT, trajectories=trajectories, seed=5)
    judgement: Judgement = create(config, backend=backend).judge([job])[0]
    return judgement


def position_of_good(content: str) -> str:
    return "A" if content.index("good") < content.index("bad") else "B"


def test_a_judge_that_sees_quality_agrees_with_itself_in_both_orders() -> None:
    backend = Scripted(lambda content: f"Winner: {position_of_good(content)}")
    judgement = judged(backend, ["bad", "good"])
    comparison = judgement.comparisons[0]
    assert (comparison.first, comparison.second) == ("t0", "t1")
    assert (comparison.first_shown_first, comparison.first_shown_second) == (0.0, 0.0)
    assert comparison.probability == 0.0
    assert comparison.agreed
    assert [v.score for v in judgement.verdicts] == [0.0, 1.0]
    assert len(backend.asked) == 2


def test_position_bias_cancels_out_and_is_counted() -> None:
    judgement = judged(Scripted(lambda _: "Winner: A"), ["one", "two", "three"])
    assert [c.probability for c in judgement.comparisons] == [0.5, 0.5, 0.5]
    assert all(c.first_shown_first == 1.0 for c in judgement.comparisons)
    assert not any(c.agreed for c in judgement.comparisons)
    assert [v.score for v in judgement.verdicts] == [0.5, 0.5, 0.5]
    assert judgement.counts["disagreed"] == judgement.counts["preferred_first"] == 3
    assert judgement.counts["agreed"] == judgement.counts["ties"] == 0


def test_ties_are_kept_and_a_tie_agrees_with_a_tie_only() -> None:
    tied = judged(Scripted(lambda _: "Winner: tie"), ["one", "two"])
    assert tied.comparisons[0].agreed
    assert tied.comparisons[0].probability == 0.5
    assert tied.counts["ties"] == 1
    replies = iter(["Winner: A", "Winner: tie"])
    half = judged(Scripted(lambda _: next(replies)), ["one", "two"])
    assert not half.comparisons[0].agreed
    assert half.comparisons[0].probability == 0.75


def test_identical_and_empty_completions_are_settled_without_a_call() -> None:
    backend = Scripted(lambda _: "garbage")
    judgement = judged(backend, ["same", " same\n", "", " "])
    assert backend.asked == []
    by_pair = {(c.first, c.second): c.probability for c in judgement.comparisons}
    assert by_pair == {
        ("t0", "t1"): 0.5,
        ("t0", "t2"): 1.0,
        ("t0", "t3"): 1.0,
        ("t1", "t2"): 1.0,
        ("t1", "t3"): 1.0,
        ("t2", "t3"): 0.5,
    }
    assert judgement.counts["identical"] == 1
    assert judgement.counts["empty"] == 5
    assert judgement.counts["agreed"] == 0
    assert all(c.rationale.startswith("not asked: ") for c in judgement.comparisons)


def test_one_unreadable_order_makes_the_comparison_an_error_with_its_text_kept() -> None:
    long = "blah " * 1_000
    replies = iter(["Winner: A", long])
    judgement = judged(Scripted(lambda _: next(replies)), ["one", "two"])
    comparison = judgement.comparisons[0]
    assert comparison.probability is None
    assert comparison.first_shown_first == 1.0
    assert comparison.first_shown_second is None
    assert "unreadable answer" in (comparison.error or "")
    assert "blah blah" in comparison.rationale
    assert len(comparison.rationale) < 4_200
    assert [v.status for v in judgement.verdicts] == [VerdictStatus.ERROR] * 2


def test_a_failed_comparison_does_not_touch_the_others() -> None:
    def rule(content: str) -> str | Reply:
        if "poison" in content:
            return Reply(text=None, error="HTTP 400: too long")
        return f"Winner: {position_of_good(content)}"

    judgement = judged(Scripted(rule), ["good", "bad", "poison"])
    assert [v.score for v in judgement.verdicts] == [1.0, 0.0, None]
    assert judgement.verdicts[2].error == "HTTP 400: too long"
    assert judgement.counts["errors"] == 2


def test_a_backend_that_raises_or_miscounts_gives_error_verdicts_and_no_exception() -> None:
    class Short(Scripted):
        def ask(self, questions: Sequence[Question]) -> list[Reply]:
            return super().ask(questions)[:-1]

    def explode(_: str) -> str:
        raise MemoryError("boom")

    for backend, message in (
        (Scripted(explode), "MemoryError: boom"),
        (Short(lambda _: "x"), "replies to"),
    ):
        judgement = judged(backend, ["one", "two"])
        assert all(v.score is None and message in (v.error or "") for v in judgement.verdicts)
        assert judgement.comparisons[0].probability is None


def test_a_single_attempt_has_nothing_to_win_against() -> None:
    judgement = judged(Scripted(lambda _: "Winner: A"), ["alone"])
    assert [v.status for v in judgement.verdicts] == [VerdictStatus.ABSTAINED]
    assert judgement.comparisons == []


def test_an_attempt_that_no_pair_covers_abstains() -> None:
    judgement = judged(
        Scripted(lambda _: "Winner: tie"), ["a", "b", "c", "d"], comparisons_per_prompt=1
    )
    statuses = sorted(v.status.value for v in judgement.verdicts)
    assert statuses == ["abstained", "abstained", "scored", "scored"]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
def test_chosen_pairs_are_distinct_and_use_every_attempt_about_equally(size: int) -> None:
    total = size * (size - 1) // 2
    for limit in range(1, total + 1):
        pairs = choose_pairs(size, limit, seed=(0, "x"))
        assert len(set(pairs)) == len(pairs) == limit
        assert all(0 <= pair.first < pair.second < size for pair in pairs)
        used = [sum(i in pair for pair in pairs) for i in range(size)]
        assert max(used) - min(used) <= (1 if limit <= size else 2)
    assert len(choose_pairs(size, None, seed=(0,))) == total


def test_as_many_pairs_as_attempts_connect_all_of_them() -> None:
    for seed in range(20):
        reached = {0}
        pairs = choose_pairs(7, 7, seed=(seed,))
        for _ in pairs:
            reached |= {i for pair in pairs if reached & set(pair) for i in pair}
        assert reached == set(range(7))


def test_the_choice_of_pairs_follows_the_seed() -> None:
    choices = {tuple(choose_pairs(8, 3, seed=(seed,))) for seed in range(10)}
    assert len(choices) > 5
    assert choose_pairs(8, 3, seed=(1,)) == choose_pairs(8, 3, seed=(1,))
