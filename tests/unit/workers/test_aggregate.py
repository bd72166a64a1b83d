"""From verdicts to feedback, from feedback to pass@k, and what the verify worker writes and counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base.errors import ArtifactError, ConfigurationError
from policies.base.records import (
    Comparison,
    Feedback,
    Message,
    Prompt,
    Sampling,
    Span,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from policies.examples.builder import PREFERENCES, PreferenceBuilder
from policies.examples.kinds import PreferencePair
from policies.storage.artifacts import file_sha256, read_marker, read_records, write_records
from tests.support.committing import committed
from workers.scoring.aggregate import aggregate, pass_at_k, powers_of_two
from workers.scoring.feedback_settings import FeedbackSettings
from workers.verify.verifier import VERIFIERS, Verifier
from workers.verify.worker import VerifyWorker


def prompt(name: str) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=f"{name}?"),), answer=56)


def attempt(
    name: str, index: int, text: str, status: TrajectoryStatus = TrajectoryStatus.COMPLETE
) -> Trajectory:
    turn = Turn(
        role="policy",
        token_ids=(10 + index, 2),
        text=text,
        logprobs=(-0.5, -0.25),
        stop_reason=StopReason.STOP,
    )
    is_error = status is TrajectoryStatus.ERROR
    return Trajectory(
        id=f"r1.{name}.{index}",
        prompt_id=name,
        sample_index=index,
        policy_version=0,
        policy_digest="d",
        prompt_token_ids=(1, 5),
        turns=() if is_error else (turn,),
        status=status,
        sampling=Sampling(),
        error="the engine failed" if is_error else None,
    )


ONE = attempt("a", 0, "56")


def verdict(source: str, score: float | None, *, error: str | None = None, **more: Any) -> Verdict:
    status = VerdictStatus.ERROR if error else VerdictStatus.ABSTAINED
    if score is not None:
        status = VerdictStatus.SCORED
    return Verdict(
        source=source, trajectory_id=ONE.id, status=status, score=score, error=error, **more
    )


def feedback(verdicts: Sequence[Verdict], **settings: Any) -> Feedback:
    weights = settings.pop("weights", None)
    group = aggregate(prompt("a"), [ONE], verdicts, (), FeedbackSettings(**settings), weights)
    return group.feedback[0]


def test_the_score_is_the_mean_weighted_by_source() -> None:
    verdicts = [verdict("math", 1.0), verdict("judge", 0.2), verdict("unweighted", 0.5)]
    found = feedback(verdicts, weights={"math": 3.0, "judge": 1.0})
    # (3 * 1.0 + 1 * 0.2 + 1 * 0.5) / 5
    assert found.score == pytest.approx(0.74)
    assert found.desirable is True
    assert found.verdicts == tuple(verdicts)


def test_several_verdicts_of_one_source_weigh_as_one() -> None:
    assert feedback([verdict("a", 1.0), verdict("a", 0.0), verdict("b", 1.0)]).score == 0.75


@pytest.mark.parametrize(("score", "desirable"), [(0.49, False), (0.5, True), (1.0, True)])
def test_desirable_begins_at_the_threshold(score: float, desirable: bool) -> None:
    assert feedback([verdict("a", score)]).desirable is desirable


def test_failed_verdict_never_scores_zero() -> None:
    found = feedback([verdict("a", 1.0), verdict("b", None, error="timed out")])
    assert (found.score, found.desirable) == (None, None)
    assert found.unusable_because == "verifier_error:b"


def test_a_failed_source_can_be_ignored_unless_nothing_else_is_left() -> None:
    failed = verdict("b", None, error="timed out")
    assert feedback([verdict("a", 1.0), failed], on_error="ignore_source").score == 1.0
    alone = feedback([failed, verdict("a", None)], on_error="ignore_source")
    assert alone.unusable_because == "verifier_error:b"


def test_abstentions_do_not_count_and_alone_make_unusable() -> None:
    assert feedback([verdict("a", 0.8), verdict("b", None)]).score == 0.8
    assert feedback([verdict("a", None)]).unusable_because == "all_abstained"
    assert feedback([]).unusable_because == "no_verdict"


def test_a_failed_rollout_is_unusable_whatever_was_said() -> None:
    failed = attempt("a", 0, "", TrajectoryStatus.ERROR)
    group = aggregate(prompt("a"), [failed], [verdict("a", 1.0)], (), FeedbackSettings())
    assert group.feedback[0].unusable_because == "rollout_error"


def test_verdicts_on_spans_are_step_scores_in_order_and_not_the_outcome() -> None:
    steps = [
        verdict("steps", 0.9, span=Span(turn=1, start=0, end=4)),
        verdict("steps", 0.1, span=Span(turn=0, start=0, end=4)),
    ]
    found = feedback([*steps, verdict("outcome", 1.0)])
    assert (found.score, [s.score for s in found.steps]) == (1.0, [0.1, 0.9])


def test_a_verdict_of_another_shard_is_refused() -> None:
    foreign = verdict("a", 1.0).model_copy(update={"trajectory_id": "r9.z.0"})
    with pytest.raises(ArtifactError, match=r"r9\.z\.0"):
        feedback([foreign])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 1000)), min_size=1, max_size=8))
@settings(deadline=None)
def test_the_score_stays_between_the_lowest_and_highest(scores: list[tuple[float, float]]) -> None:
    verdicts = [verdict(f"v{i}", score) for i, (score, _) in enumerate(scores)]
    weights = {f"v{i}": weight for i, (_, weight) in enumerate(scores)}
    found = feedback(verdicts, weights=weights).score
    assert found is not None
    low, high = min(s for s, _ in scores), max(s for s, _ in scores)
    assert low - 1e-12 <= found <= high + 1e-12
    assert 0 <= found <= 1


@given(st.integers(1, 9), st.data())
@settings(deadline=None)
def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    draws = list(combinations(range(n), k))
    hits = sum(any(i < c for i in drawn) for drawn in draws)
    assert pass_at_k(n, c, k) == pytest.approx(hits / len(draws))


def test_pass_at_k_refuses_what_is_not_defined() -> None:
    assert powers_of_two(8) == [1, 2, 4, 8]
    assert powers_of_two(7) == [1, 2, 4]
    assert powers_of_two(0) == []
    for n, c, k in [(4, 1, 5), (4, 5, 1), (4, 1, 0)]:
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(n, c, k)


# --- the worker

SHARD = [
    ("mixed", ["56", "55", "so 56", "no idea"]),
    ("right", ["56", "is 56", "56.", "56!"]),
    ("wrong", ["1", "2", "3", "4"]),
]


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    prompts = [prompt(name) for name, _ in SHARD] + [prompt("not in this shard")]
    attempts = [attempt(name, i, text) for name, texts in SHARD for i, text in enumerate(texts)]
    attempts.append(attempt("mixed", 4, "", TrajectoryStatus.ERROR))
    write_records(tmp_path / "prompts.parquet", Prompt, prompts)
    write_records(tmp_path / "trajectories.parquet", Trajectory, attempts)
    names = ("prompts", "trajectories", "verdicts", "examples", "graded")
    return {name: str(tmp_path / f"{name}.parquet") for name in names}


@pytest.fixture
def worker() -> Iterator[VerifyWorker]:
    worker = worker_with("numeric_match", {"type": "regex_match", "pattern": r"\d", "weight": 0.5})
    yield worker
    worker.close()


def worker_with(*verifiers: Any, preferences: Any = "right_vs_wrong") -> VerifyWorker:
    configs = [VERIFIERS.parse(value) for value in verifiers]
    builder = PREFERENCES.parse(preferences) if preferences else None
    assert builder is None or isinstance(builder, PreferenceBuilder.Config)
    return VerifyWorker(
        [config for config in configs if isinstance(config, Verifier.Config)],
        FeedbackSettings(),
        [] if builder is None else [builder],
    )


def test_every_sampled_trajectory_gets_a_verdict_of_every_verifier(
    worker: VerifyWorker, paths: dict[str, str]
) -> None:
    summary = committed(worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"]))
    verdicts = read_records(Path(paths["verdicts"]), Verdict)
    assert [v.source for v in verdicts[:4]] == ["numeric_match", "regex_match"] * 2
    assert len(verdicts) == 24
    # weights 1 and 0.5: a wrong number scores 0.5 / 1.5, no number 0
    counts = {k: summary[k] for k in ("trajectories", "desirable", "undesirable", "unusable")}
    assert counts == {"trajectories": 13, "desirable": 6, "undesirable": 6, "unusable": 1}
    numeric = summary["sources"]["numeric_match"]
    assert (numeric["scored"], numeric["errors"], numeric["score_sum"]) == (12, 0, 6.0)
    assert summary == read_marker_summary(paths["verdicts"])


def read_marker_summary(path: str) -> dict[str, Any]:
    marker = read_marker(Path(path))
    assert marker is not None
    return dict(marker.summary)


def test_a_worker_finishes_nothing_by_itself(worker: VerifyWorker, paths: dict[str, str]) -> None:
    written = worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"])
    path = Path(paths["verdicts"])
    assert read_marker(path) is None, "only the driver commits"
    assert (written.files[0].path, written.files[0].num_rows) == (str(path), 24)
    assert written.files[0].sha256 == file_sha256(path)


def test_errors_are_counted_and_the_summary_stays_small(
    tmp_path: Path, paths: dict[str, str]
) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "def f(completion): raise ValueError('x' * 5000 + completion)", encoding="utf-8"
    )
    configs = [{"type": "callable", "function": f"{user}:f", "name": f"v{i}"} for i in range(4)]
    worker = worker_with(*configs)
    try:
        summary = committed(
            worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"])
        )
        assert [s["errors"] for s in summary["sources"].values()] == [12] * 4
        assert summary["unusable"] == 13
        assert len(json.dumps(summary)) < 1024
        arguments = (paths["trajectories"], paths["prompts"], paths["verdicts"], None)
        preferred = committed(worker.prefer(*arguments, paths["examples"], 0, "r1"))
    finally:
        worker.close()
    assert preferred["examples"] == 0
    assert preferred["dropped"] == {"rollout_error": 1, "unusable: verifier_error:v0": 12}


def test_examples_and_feedback_are_written_and_counted(
    worker: VerifyWorker, paths: dict[str, str]
) -> None:
    committed(worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"]))
    arguments = (paths["trajectories"], paths["prompts"], paths["verdicts"], None)
    summary = committed(worker.prefer(*arguments, paths["examples"], 0, "r1"))
    pairs = read_records(Path(paths["examples"]), PreferencePair)
    assert [pair.prompt_id for pair in pairs] == ["mixed", "mixed"]
    assert {k: summary[k] for k in ("prompts", "prompts_with_example", "examples")} == {
        "prompts": 3,
        "prompts_with_example": 1,
        "examples": 2,
    }
    assert (summary["prompts_all_right"], summary["prompts_all_wrong"]) == (1, 1)
    assert summary["dropped"] == {"all_right": 4, "all_wrong": 4, "cap": 2, "rollout_error": 1}
    assert summary["margin_sum"] == pytest.approx(math.fsum(pair.margin for pair in pairs))
    written = read_records(Path(paths["examples"]).with_name("examples.feedback.parquet"), Feedback)
    assert len(written) == 13
    assert len(json.dumps(summary)) < 1024


def test_the_same_work_has_the_same_digest(worker: VerifyWorker, paths: dict[str, str]) -> None:
    digests = []
    for name in ("one", "two"):
        verdicts, examples = paths["verdicts"] + name, paths["examples"] + name
        committed(worker.verify(paths["trajectories"], paths["prompts"], verdicts))
        committed(
            worker.prefer(
                paths["trajectories"], paths["prompts"], verdicts, None, examples, 7, "r1"
            )
        )
        markers = [read_marker(Path(path)) for path in (verdicts, examples)]
        digests.append([marker.content_digest for marker in markers if marker])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2


def test_judges_alone_can_decide(tmp_path: Path, paths: dict[str, str]) -> None:
    ids = [f"r1.mixed.{i}" for i in range(4)]
    judged = [
        Verdict(source="pairwise", trajectory_id=id_, status=VerdictStatus.SCORED, score=i / 3)
        for i, id_ in enumerate(ids)
    ]
    seen = Comparison(
        source="pairwise",
        first=ids[0],
        second=ids[1],
        probability=0.1,
        first_shown_first=0.2,
        first_shown_second=0.0,
        agreed=True,
    )
    write_records(tmp_path / "judged.parquet", Verdict, judged)
    write_records(tmp_path / "seen.parquet", Comparison, [seen])
    judgement = (str(tmp_path / "judged.parquet"), str(tmp_path / "seen.parquet"))
    worker = worker_with(preferences={"type": "best_vs_worst"})
    summary = committed(
        worker.prefer(
            paths["trajectories"], paths["prompts"], None, judgement, paths["examples"], 0, "r1"
        )
    )
    assert summary["examples"] == 1
    pair = read_records(Path(paths["examples"]), PreferencePair)[0]
    assert pair.id == "r1.mixed.3>r1.mixed.0"
    assert summary["dropped"]["unusable: no_verdict"] == 8


def test_grades_count_by_prompt_and_keep_apart_what_nothing_graded(
    worker: VerifyWorker, paths: dict[str, str]
) -> None:
    committed(worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"]))
    summary = committed(
        worker.grade(
            paths["trajectories"], paths["prompts"], paths["verdicts"], None, paths["graded"]
        )
    )
    assert summary["prompts"] == 3
    assert (summary["samples"], summary["desirable"], summary["unusable"]) == (13, 6, 1)
    # mixed: 2 of 4 and a fifth that nothing graded, right: 4 of 4, wrong: 0 of 4
    by_prompt = summary["by_prompt"]
    assert by_prompt.pop("score_sum") == pytest.approx([7 / 3, 4.0, 4 / 3])
    assert by_prompt == {
        "asked": [5, 4, 4],
        "measured": [4, 4, 4],
        "right": [2, 4, 0],
        "ended": [4, 4, 4],
        "ended_right": [2, 4, 0],
    }
    assert (summary["policy_tokens"], summary["truncated"]) == (24, 0)
    assert (summary["neg_logprob_sum"], summary["logprob_tokens"]) == (pytest.approx(9.0), 24)
    assert len(read_records(Path(paths["graded"]), Feedback)) == 13


def test_files_that_do_not_belong_together_are_refused(
    worker: VerifyWorker, paths: dict[str, str], tmp_path: Path
) -> None:
    write_records(tmp_path / "other.parquet", Prompt, [prompt("other")])
    with pytest.raises(ArtifactError, match="mixed, right, wrong"):
        worker.verify(paths["trajectories"], str(tmp_path / "other.parquet"), paths["verdicts"])
    write_records(tmp_path / "v.parquet", Verdict, [verdict("a", 1.0)])
    with pytest.raises(ArtifactError, match=r"r1\.a\.0"):
        worker.grade(
            paths["trajectories"],
            paths["prompts"],
            str(tmp_path / "v.parquet"),
            None,
            paths["graded"],
        )
    with pytest.raises(ConfigurationError, match="no preference builder"):
        worker_with(preferences=None).prefer("", "", None, None, "", 0, "")


def test_a_verifier_of_six_lines_outside_the_repository_is_used(
    tmp_path: Path, paths: dict[str, str]
) -> None:
    user = tmp_path / "my_verifier.py"
    user.write_text(
        "def score(prompt, completion, answer):\n"
        "    if completion == '55': raise ValueError('I dislike 55')\n"
        "    if completion == 'no idea': return 'rubbish'\n"
        "    return str(answer) in completion\n",
        encoding="utf-8",
    )
    worker = worker_with(f"{user}:score")
    try:
        summary = committed(
            worker.verify(paths["trajectories"], paths["prompts"], paths["verdicts"])
        )
    finally:
        worker.close()
    mine = summary["sources"]["callable"]
    assert (mine["scored"], mine["errors"], mine["score_sum"]) == (10, 2, 6.0)
    assert any("I dislike 55" in text for text, _ in mine["top_errors"])
