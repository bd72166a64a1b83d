"""Whole runs with fakes: what is decided on, what a rejection leaves behind, and what is reported at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.files import load_config
from orchestrator.driver.launch import RunSummary, resume_experiment, run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.events import EventKind, read_events
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Collected, Evaluated, Phase, Remeasured, Trained
from orchestrator.runs.state import run_status
from policies.base.errors import InputError, LimitExceededError
from policies.base.records import RoundStatus
from tests.support.cut_journals import cut_journal
from tests.support.fake_runs import arithmetic, fake_config

NEVER = {"type": "if_better", "margin": 0.9}
"""An acceptance rule that rejects every round."""
WORSE = {"engine": {"type": "fake", "skill_step": -0.4}}
"""A trainer that makes the policy clearly worse."""


def run(tmp_path: Path, **changes: Any) -> RunSummary:
    settings = fake_config(tmp_path, **changes)
    return run_experiment(settings, RunFolder(tmp_path / "run"), source="")


def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run" / "journal.jsonl")


def trained(tmp_path: Path, index: int) -> Trained:
    found = journal(tmp_path).find(index, Phase.TRAIN, Trained)
    assert found is not None
    return found


def warnings(tmp_path: Path) -> str:
    events = read_events(tmp_path / "run" / "events.jsonl")
    return "\n".join(str(e.detail["message"]) for e in events if e.kind is EventKind.WARNING)


def assert_whole(tmp_path: Path) -> None:
    report = audit(RunFolder(tmp_path / "run"), deep=True)
    assert not report.num_problems, [p for check in report for p in check.problems]


def verifier(tmp_path: Path, condition: str) -> list[dict[str, Any]]:
    """A verifier that is right about the product, and fails where `condition` holds."""
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(prompt, completion, answer):\n"
        f"    if {condition}:\n"
        "        raise OSError('the checker is away')\n"
        "    return str(answer) in completion\n",
        encoding="utf-8",
    )
    return [{"type": f"{path}:score", "name": "mine"}]


# --- what is measured


def test_a_round_tells_its_difference_with_the_error_and_the_score_that_serves(
    tmp_path: Path,
) -> None:
    results = run(tmp_path, high=9, held_out=20, acceptance={"type": "if_better"}).results
    for result in results:
        assert result.metrics["eval/pass@1_se"] > 0
        assert result.metrics["eval/pass@8_se"] >= 0
        assert result.metrics["serving/pass@1_se"] > 0
    last = results[-1]
    before = results[-2].metrics["eval/pass@1"]
    if not last.metrics.get("again"):
        assert last.metrics["eval/difference"] == pytest.approx(
            last.metrics["eval/pass@1"] - before, abs=0.2
        )
    assert "+- 0." in last.reason
    assert last.metrics["eval/difference_se"] > 0
    assert_whole(tmp_path)


def test_a_measurement_that_lacks_attempts_decides_nothing_and_says_so(tmp_path: Path) -> None:
    broken = verifier(tmp_path, "len(completion) % 3 == 0")
    summary = run(
        tmp_path,
        high=9,
        held_out=12,
        training=WORSE,
        acceptance={"type": "if_better"},
        evaluation={"verifiers": broken},
        limits={"max_verdict_errors": 1.0},
    )
    result = summary.results[1]
    assert result.status is RoundStatus.KEPT
    assert "limits.max_unmeasured" in result.reason
    assert result.metrics["eval/unusable_share"] > 0.05


def test_the_remedy_for_a_measurement_that_lacks_attempts_works(tmp_path: Path) -> None:
    broken = verifier(tmp_path, "len(completion) % 5 == 0")
    summary = run(
        tmp_path,
        high=9,
        held_out=12,
        evaluation={"verifiers": broken},
        limits={"max_verdict_errors": 1.0, "max_unmeasured": 1.0},
    )
    assert all("not decided" not in r.reason for r in summary.results)


def test_a_prompt_that_was_never_measured_is_not_counted_as_measured(tmp_path: Path) -> None:
    broken = verifier(tmp_path, "'3 times 4' in str(prompt) or '4 times 3' in str(prompt)")
    tree: dict[str, Any] = {"limits": {"max_verdict_errors": 1.0, "max_unmeasured": 1.0}}
    results = run(
        tmp_path, high=5, held_out=15, per_round=1, evaluation={"verifiers": broken}, **tree
    )
    for result in results.results:
        metrics = result.metrics
        assert metrics["eval/prompts"] + metrics["eval/prompts_unmeasured"] == 15
        assert 1 <= metrics["eval/prompts_unmeasured"] <= 2
        assert metrics["eval/unusable_share"] == pytest.approx(
            metrics["eval/prompts_unmeasured"] / 15
        )


# --- what a rejection leaves


def test_a_clearly_worse_policy_is_rolled_back_with_the_numbers(tmp_path: Path) -> None:
    results = run(
        tmp_path,
        skill=0.6,
        high=9,
        held_out=20,
        training=WORSE,
        acceptance={"type": "if_better"},
    ).results
    assert results[1].status is RoundStatus.REJECTED
    assert "clearly worse" in results[1].reason
    assert results[1].metrics["serving/pass@1"] > results[1].metrics["eval/pass@1"]
    again = journal(tmp_path).find(1, Phase.COMPARE, Remeasured)
    assert again is not None, "what it lost against was measured again"
    assert [m.version for m in again.measurements.values()] == [0]
    first = journal(tmp_path).find(0, Phase.EVALUATE, Evaluated)
    second = again.measurements["again-0000"]
    assert first is not None
    assert first.digests != second.digests, "with new samples"
    assert_whole(tmp_path)


def test_examples_of_rejected_rounds_join_the_next_and_the_rate_falls(tmp_path: Path) -> None:
    results = run(tmp_path, rounds=3, high=9, held_out=5, acceptance=NEVER).results
    assert [r.status for r in results[1:]] == [RoundStatus.REJECTED] * 3
    own = [journal(tmp_path).find(i, Phase.COLLECT, Collected) for i in (1, 2, 3)]
    numbers = [c.num_examples for c in own if c is not None]
    assert [trained(tmp_path, i).reused for i in (1, 2, 3)] == [(), (1,), (1, 2)]
    assert [trained(tmp_path, i).num_reused for i in (1, 2, 3)] == [
        0,
        numbers[0],
        numbers[0] + numbers[1],
    ]
    seen = [r.metrics["train/examples"] for r in results[1:]]
    assert seen == [numbers[0], sum(numbers[:2]), sum(numbers)]
    rates = [r.metrics["train/learning_rate"] for r in results[1:]]
    assert rates == pytest.approx([1e-5, 0.5e-5, 0.25e-5])
    assert "2 rounds in a row were rejected" in warnings(tmp_path)
    assert_whole(tmp_path)


def test_an_accepted_round_takes_only_its_own_examples_at_the_full_rate(tmp_path: Path) -> None:
    results = run(tmp_path, rounds=2, high=9, held_out=5).results
    assert [trained(tmp_path, i).reused for i in (1, 2)] == [(), ()]
    assert [r.metrics["train/learning_rate"] for r in results[1:]] == pytest.approx([1e-5, 1e-5])


def test_nothing_is_kept_where_that_is_off(tmp_path: Path) -> None:
    off = {"keep_examples": False, "learning_rate_factor": 1.0}
    results = run(tmp_path, high=9, acceptance=NEVER, on_rejection=off).results
    assert trained(tmp_path, 2).reused == ()
    assert results[2].metrics["train/learning_rate"] == pytest.approx(1e-5)


def test_a_stall_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    stall = {"max_rejected_rounds": 2}
    summary = run(tmp_path, rounds=9, high=9, acceptance=NEVER, limits=stall)
    assert len(summary.results) == 3
    assert "limits.max_rejected_rounds" in summary.reason
    assert "final/pass@1" in summary.results[-1].metrics, "the last version was measured anew"


def test_retention_keeps_the_examples_that_the_next_round_takes(tmp_path: Path) -> None:
    keep = {"trajectories": 1, "policies": "best"}
    run(tmp_path, rounds=3, high=9, acceptance=NEVER, retention=keep)
    assert trained(tmp_path, 3).reused == (1, 2)
    assert_whole(tmp_path)


@pytest.mark.parametrize("cut", [Phase.COMPARE, Phase.TRAIN, Phase.FINAL, Phase.ACCEPT])
def test_a_run_that_is_killed_ends_with_the_same_journal(tmp_path: Path, cut: Phase) -> None:
    changes: dict[str, Any] = {
        "skill": 0.6,
        "rounds": 2,
        "high": 9,
        "held_out": 20,
        "training": WORSE,
        "acceptance": {"type": "if_better"},
    }
    run(tmp_path, **changes)
    whole = journal(tmp_path).path.read_bytes()
    entries = journal(tmp_path).entries
    wanted = [i for i, entry in enumerate(entries) if entry.phase is cut and entry.round > 0]
    assert wanted, "the phase happens in this run"
    cut_journal(RunFolder(tmp_path / "run"), wanted[-1])
    resume_experiment(RunFolder(tmp_path / "run"))
    assert journal(tmp_path).path.read_bytes() == whole
    if (
        cut is not Phase.TRAIN
    ):  # cut there by hand, the version that was published is there before its journal line
        assert_whole(tmp_path)


# --- what is reported


def test_test_prompts_are_measured_at_the_start_and_the_end_only(tmp_path: Path) -> None:
    prompts = {
        "train": arithmetic("train", high=9),
        "held_out": arithmetic("held_out", high=9),
        "per_round": 6,
        "test": {"type": "arithmetic", "low": 11, "high": 14, "held_out": 8, "split": "held_out"},
    }
    results = run(tmp_path, rounds=3, prompts=prompts, acceptance={"type": "if_better"}).results
    assert ["test/pass@1" in r.metrics for r in results] == [True, False, False, True]
    assert results[0].metrics["test/prompts"] == 8
    assert "final/pass@1" not in results[-1].metrics
    assert_whole(tmp_path)


def test_test_prompts_that_a_decision_sees_are_refused(tmp_path: Path) -> None:
    prompts = {
        "train": arithmetic("train", high=9),
        "held_out": arithmetic("held_out", high=9),
        "per_round": 6,
        "test": arithmetic("held_out", high=9),
    }
    with pytest.raises(InputError, match=r"test prompts are held-out prompts too.*prompts\.test"):
        run(tmp_path, prompts=prompts)
    (tmp_path / "other").mkdir()
    run(tmp_path / "other", prompts={**prompts, "allow_overlap": True})


def test_without_a_choice_by_score_nothing_is_measured_again(tmp_path: Path) -> None:
    results = run(tmp_path, acceptance={"type": "always"}).results
    assert not [n for r in results for n in r.metrics if n.startswith(("final/", "test/"))]


def test_the_speed_of_every_stage_is_told_beside_the_journal(tmp_path: Path) -> None:
    run(tmp_path, rounds=1)
    folder = RunFolder(tmp_path / "run")
    speed = run_status(folder)["rounds"][1]["throughput"]
    stages = ("rollout", "verify", "train", "evaluate")
    assert all(speed[f"throughput/{stage}"] > 0 for stage in stages)
    finished = [e for e in read_events(folder.events) if e.kind is EventKind.ROUND_FINISHED]
    assert finished[-1].detail["throughput"] == speed
    assert "throughput" not in folder.journal.read_text(), "the journal has no clocks"


# --- sampler and trainer disagree


def gap(value: float) -> dict[str, Any]:
    return {"engine": {"type": "fake", "logprob_gap": value}}


def test_a_small_gap_is_silent_and_a_larger_one_warned_about(tmp_path: Path) -> None:
    run(tmp_path, training=gap(0.05))
    assert "health/logprob_gap" not in warnings(tmp_path)
    (tmp_path / "other").mkdir()
    results = run(tmp_path / "other", training=gap(0.2)).results
    assert "0.200 nats a token" in warnings(tmp_path / "other")
    assert "(log-probs: rollout)" in results[1].reference


def test_a_large_gap_recomputes_the_reference_from_then_on(tmp_path: Path) -> None:
    results = run(tmp_path, training=gap(0.8)).results
    assert [r.reference for r in results[1:]] == [
        "version 0 (log-probs: recompute)",
        "version 1 (log-probs: recompute)",
    ]
    assert trained(tmp_path, 1).forced
    assert "made again with log-probs that the trainer computes" in warnings(tmp_path)
    assert_whole(tmp_path)


def test_a_large_gap_ends_the_run_where_that_is_asked_for_or_nothing_is_left(
    tmp_path: Path,
) -> None:
    with pytest.raises(LimitExceededError, match=r"limits\.max_logprob_gap"):
        run(tmp_path, training=gap(0.8), limits={"on_logprob_gap": "refuse"})
    (tmp_path / "other").mkdir()
    recomputed = {**gap(0.8), "reference": {"type": "refresh", "logprobs": "recompute"}}
    with pytest.raises(LimitExceededError, match="do not compute the same policy"):
        run(tmp_path / "other", training=recomputed)
    (tmp_path / "third").mkdir()
    run(tmp_path / "third", training=recomputed, limits={"max_logprob_gap": 1.0})


def test_the_engine_that_the_message_about_a_gap_names_can_be_set_as_it_says() -> None:
    text = "rollout.engine={type: transformers}"
    source = (Path(__file__).parents[3] / "orchestrator/rounds/logprob_gap.py").read_text()
    assert text in source
    assert load_config("quickstart", [text]).config.rollout.engine.type == "transformers"
