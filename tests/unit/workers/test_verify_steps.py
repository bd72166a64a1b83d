"""Step-level grading: every verifier and the rubric judge work on steps unchanged, and a failed step harms no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.base.component import ComponentConfigError
from policies.base.records import (
    Feedback,
    Message,
    PolicyVersion,
    Prompt,
    Sampling,
    Span,
    Step,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from policies.examples.builder import PREFERENCES, PreferenceBuilder
from policies.examples.kinds import UnpairedExample
from policies.storage.artifacts import read_records, write_records
from tests.support.committing import committed
from workers.cluster.item_filter import ItemFilter
from workers.judge.judge import JUDGES, BackendContext, Judge
from workers.judge.prompt import viewed_text
from workers.judge.worker import JudgeWorker
from workers.scoring.aggregate import aggregate
from workers.scoring.feedback_settings import FeedbackSettings
from workers.scoring.graded_parts import parts_to_grade
from workers.verify.verifier import VERIFIERS, Verifier
from workers.verify.worker import VerifyWorker

PROMPT = Prompt(id="p", messages=(Message(role="user", content="7 times 8?"),), answer=56)


def attempt(index: int, *texts: str, last: str = "It is 56.") -> Trajectory:
    """A turn of one-token steps with these texts, an observation, and a turn without steps."""
    steps = tuple(Step(start=i, end=i + 1, text=text) for i, text in enumerate(texts))
    turns = (
        Turn(
            role="policy",
            token_ids=tuple(10 * index + i for i in range(len(texts))),
            text="".join(texts),
            logprobs=(-1.0,) * len(texts),
            stop_reason=StopReason.STOP,
            steps=steps,
        ),
        Turn(role="observation", token_ids=(5,), text="seen", stop_reason=StopReason.OBSERVATION),
        Turn(
            role="policy",
            token_ids=(7, 8),
            text=last,
            logprobs=(-1.0, -1.0),
            stop_reason=StopReason.STOP,
        ),
    )
    return Trajectory(
        id=f"t{index}",
        prompt_id="p",
        sample_index=index,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(1, 2),
        turns=turns,
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )


ONE = attempt(1, "56\n", "57\n")
SPANS = [Span(turn=0, start=0, end=1), Span(turn=0, start=1, end=2), Span(turn=2, start=0, end=2)]


def verdict(source: str, span: Span | None, score: float | None) -> Verdict:
    return Verdict(
        source=source,
        trajectory_id=ONE.id,
        status=VerdictStatus.ERROR if score is None else VerdictStatus.SCORED,
        score=score,
        error="it broke" if score is None else None,
        span=span,
    )


def feedback(*verdicts: Verdict, **settings: Any) -> Feedback:
    return aggregate(PROMPT, [ONE], verdicts, (), FeedbackSettings(**settings)).feedback[0]


# --- aggregation


def test_a_failed_step_leaves_the_outcome_and_the_other_steps_as_they_are() -> None:
    found = feedback(
        verdict("outcome", None, 1.0),
        verdict("steps", SPANS[0], None),
        verdict("steps", SPANS[1], 0.25),
    )
    assert (found.score, found.unusable_because) == (1.0, None)
    assert [(s.span, s.score, s.desirable) for s in found.steps] == [(SPANS[1], 0.25, False)]


def test_a_failed_source_can_be_ignored_for_a_step_as_for_a_trajectory() -> None:
    verdicts = (
        verdict("outcome", None, 1.0),
        verdict("a", SPANS[0], None),
        verdict("b", SPANS[0], 1.0),
    )
    assert feedback(*verdicts).steps == ()
    assert [s.score for s in feedback(*verdicts, on_error="ignore_source").steps] == [1.0]


def test_steps_alone_give_no_outcome() -> None:
    found = feedback(verdict("steps", SPANS[0], 1.0))
    assert (found.score, found.unusable_because, len(found.steps)) == (None, "no_verdict", 1)


# --- verifiers


def test_the_parts_are_the_steps_and_a_step_without_tokens_is_none() -> None:
    assert [part.completion for part in parts_to_grade(ONE, "step")] == [
        "56\n",
        "57\n",
        "It is 56.",
    ]
    assert [part.graded for part in parts_to_grade(ONE, "step")] == SPANS
    assert parts_to_grade(ONE, "trajectory") == (ONE,)
    assert [p.completion for p in parts_to_grade(attempt(0), "step")] == ["It is 56."]


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    write_records(tmp_path / "prompts.parquet", Prompt, [PROMPT])
    failed = attempt(3).model_copy(update={"status": TrajectoryStatus.ERROR, "error": "engine"})
    attempts = [ONE, attempt(2, "5\n", last="It is 55."), failed]
    write_records(tmp_path / "trajectories.parquet", Trajectory, attempts)
    names = ("prompts", "trajectories", "verdicts", "examples", "feedback", "comparisons")
    return {name: str(tmp_path / f"{name}.parquet") for name in names}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[VerifyWorker]:
    user = tmp_path / "steps.py"
    user.write_text(
        "def right(completion, answer):\n"
        "    if '57' in completion: raise ValueError('no idea of 57')\n"
        "    return str(answer) in completion\n",
        encoding="utf-8",
    )
    values = ["numeric_match", {"type": f"{user}:right", "name": "steps", "level": "step"}]
    configs = [VERIFIERS.parse(value) for value in values]
    builder = PREFERENCES.parse("thresholded")
    assert isinstance(builder, PreferenceBuilder.Config)
    worker = VerifyWorker(
        [c for c in configs if isinstance(c, Verifier.Config)], FeedbackSettings(), [builder]
    )
    yield worker
    worker.close()


def test_a_step_verifier_gives_a_verdict_with_a_span_on_every_step(
    worker: VerifyWorker, paths: dict[str, str]
) -> None:
    summary = committed(worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"]))
    verdicts = read_records(Path(paths["verdicts"]), Verdict)
    assert [(v.trajectory_id, v.source, v.span, v.score) for v in verdicts] == [
        ("t1", "numeric_match", None, 1.0),
        ("t1", "steps", SPANS[0], 1.0),
        ("t1", "steps", SPANS[1], None),
        ("t1", "steps", SPANS[2], 1.0),
        ("t2", "numeric_match", None, 0.0),
        ("t2", "steps", SPANS[0], 0.0),
        ("t2", "steps", SPANS[2], 0.0),
    ]
    assert (summary["desirable"], summary["undesirable"], summary["unusable"]) == (1, 1, 1)
    assert (summary["steps"], summary["steps_desirable"]) == (4, 2)
    counted = summary["sources"]["steps"]
    assert (counted["scored"], counted["errors"], counted["score_sum"]) == (4, 1, 2.0)
    assert len(json.dumps(summary)) < 1000


def test_a_trajectory_in_quarantine_gets_errors_and_the_others_their_scores(
    worker: VerifyWorker, paths: dict[str, str]
) -> None:
    arguments = (paths["trajectories"], paths["prompts"], paths["verdicts"])
    summary = committed(worker.verify(*arguments, ItemFilter(skip=("t1",))))
    verdicts = read_records(Path(paths["verdicts"]), Verdict)
    failed = [(v.source, v.trajectory_id) for v in verdicts if "quarantined" in (v.error or "")]
    assert failed == [("numeric_match", "t1"), ("steps", "t1")]
    assert [v.score for v in verdicts if v.trajectory_id == "t2"] == [0.0, 0.0, 0.0]
    assert (summary["quarantined"], summary["trajectories"]) == (1, 3)
    assert summary["sources"]["numeric_match"]["errors"] == 1


def test_step_labels_reach_the_examples(worker: VerifyWorker, paths: dict[str, str]) -> None:
    committed(worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"]))
    arguments = (paths["trajectories"], paths["prompts"], paths["verdicts"], None)
    summary = committed(worker.prefer(*arguments, paths["examples"], 0, "r1", paths["feedback"]))
    assert (summary["steps"], summary["steps_desirable"]) == (4, 2)
    found = read_records(Path(paths["examples"]), UnpairedExample)
    labels = {e.id: [(s.start, s.end, s.desirable) for s in e.sequence.steps] for e in found}
    # prompt of 2, then the turn of 2 (t1) or 1 (t2), an observation of 1, and the last turn of 2
    assert labels == {
        "t1": [(2, 3, True), (5, 7, True)],
        "t2": [(2, 3, False), (4, 6, False)],
    }


# --- judges


def no_version(number: int) -> PolicyVersion:
    raise LookupError(number)


def no_model(name: str) -> PolicyVersion:
    raise LookupError(name)


CONTEXT = BackendContext(policy_version=no_version, model_version=no_model)


def judge(rule: str, kind: str = "rubric", **settings: Any) -> Judge.Config:
    values = {"type": kind, "backend": {"type": "fake", "rule": rule}, "level": "step", **settings}
    config = JUDGES.parse(values)
    assert isinstance(config, Judge.Config)
    return config


def judged(config: Judge.Config, paths: dict[str, str]) -> tuple[list[Verdict], dict[str, Any]]:
    worker = JudgeWorker([config], CONTEXT)
    summary = committed(
        worker.judge(
            paths["trajectories"], paths["prompts"], paths["verdicts"], paths["comparisons"], 0
        )
    )
    return read_records(Path(paths["verdicts"]), Verdict), summary


def test_a_rubric_judge_rates_every_step(paths: dict[str, str]) -> None:
    verdicts, summary = judged(judge("longer"), paths)
    spans = [(v.trajectory_id, v.span) for v in verdicts]
    expected: list[tuple[str, Span | None]] = [("t1", span) for span in SPANS]
    assert spans == [*expected, ("t2", SPANS[0]), ("t2", SPANS[2]), ("t3", None)]
    assert all(v.score is not None for v in verdicts[:-1])
    assert verdicts[-1].status is VerdictStatus.ABSTAINED
    assert summary["rubric"]["scored"] == 5


@pytest.mark.parametrize("rule", ["error", "raise"])
def test_a_judge_that_fails_gives_errors_on_steps_and_not_on_the_attempt(
    rule: str, paths: dict[str, str]
) -> None:
    verdicts, _ = judged(judge(rule), paths)
    failed = [v for v in verdicts if v.error is not None]
    assert len(failed) == 5
    assert all(v.span is not None for v in failed)


def test_a_step_judge_sees_what_came_before_and_not_what_comes_after() -> None:
    second = parts_to_grade(ONE, "step")[1]
    assert viewed_text(second, "completion", "step") == "57\n"
    assert viewed_text(second, "transcript", "step") == (
        "[policy]\n56\n\n[the step to judge]\n57\n"
    )
    last = parts_to_grade(ONE, "step")[2]
    assert viewed_text(last, "transcript", "step") == (
        "[policy]\n56\n57\n\n[observation]\nseen\n[the step to judge]\nIt is 56."
    )


def test_a_pairwise_judge_refuses_steps() -> None:
    with pytest.raises(ComponentConfigError, match="type rubric for steps"):
        judge("longer", kind="pairwise")
