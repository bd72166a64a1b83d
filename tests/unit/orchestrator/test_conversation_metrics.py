"""What is counted of conversations: turns, tool calls, endings, outcomes, and which policy sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rounds.collecting import totals
from orchestrator.rounds.evaluating import metrics_of
from orchestrator.rounds.metrics import collection_metrics
from orchestrator.runs.phases import Collected
from policies.base.records import (
    Ending,
    StopReason,
    ToolCall,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.storage.artifacts import read_records
from tests.support.run_folders import make_run
from workers.rollout.worker import summarize


@pytest.fixture
def rows(tmp_path: Path) -> list[Trajectory]:
    """Twelve conversations: half right with an ok call, half cut with a failed one."""
    folder = make_run(tmp_path / "q-1", rounds=1, tool_use=True)
    return read_records(folder.round(1).shard(0).of("trajectories"), Trajectory)


def metrics(*summaries: dict[str, Any]) -> dict[str, float]:
    counts = totals({"rollout": summaries})
    return collection_metrics(
        Collected(digests={}, num_trajectories=0, num_examples=0, counts=counts)
    )


def test_a_round_has_turns_calls_endings_and_outcomes_per_trajectory(
    rows: list[Trajectory],
) -> None:
    found = metrics(summarize(rows[:5]), summarize(rows[5:]))
    assert found["rollout/turns"] == 2.0
    assert found["rollout/tool_calls"] == 1.0
    assert found["rollout/tool_calls/ok"] == found["rollout/tool_calls/failed"] == 0.5
    assert "rollout/tool_calls/timed_out" not in found
    assert {e: found[f"rollout/ended/{e}"] for e in Ending} == {
        **dict.fromkeys(Ending, 0.0),
        Ending.ANSWERED: 0.5,
        Ending.TURN_LIMIT: 0.5,
    }
    assert found["rollout/outcome"] == pytest.approx(0.625)  # (6 * 1.0 + 6 * 0.25) / 12
    assert "rollout/previous_policy_share" not in found


def test_the_measurement_has_the_same_under_its_own_name(rows: list[Trajectory]) -> None:
    found = metrics_of([summarize(rows)], [])
    assert (found["eval/turns"], found["eval/tool_calls"]) == (2.0, 1.0)
    assert found["eval/outcome"] == pytest.approx(0.625)


def test_the_share_of_earlier_policies_is_told_where_there_is_one(rows: list[Trajectory]) -> None:
    mixed = [
        row.model_copy(update={"policy_version": 9 if i % 4 else 10}) for i, row in enumerate(rows)
    ]
    assert metrics(summarize(mixed))["rollout/previous_policy_share"] == 0.75


def test_single_turns_have_one_turn_and_no_calls(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1)
    rows = read_records(folder.round(1).shard(0).of("trajectories"), Trajectory)
    found = metrics(summarize(rows))
    assert (found["rollout/turns"], found["rollout/tool_calls"]) == (1.0, 0.0)
    assert "rollout/outcome" not in found
    assert "tool_calls" not in summarize(rows)


def test_a_summary_with_everything_in_it_stays_under_1_kb(rows: list[Trajectory]) -> None:
    calls = tuple(ToolCall(tool="python", status=status) for status in ToolCallStatus)
    seen = Turn(
        role="observation",
        token_ids=(1,),
        text="",
        stop_reason=StopReason.OBSERVATION,
        calls=calls * 100,
    )
    everything = [
        rows[0].model_copy(
            update={
                "turns": (*rows[0].turns, seen),
                "ending": ending,
                "policy_version": 1000 + index,
                "outcome": 1 / 3,
                "status": TrajectoryStatus.TRUNCATED,
            }
        )
        for index, ending in enumerate(Ending)
    ]
    summary = summarize(everything * 20)
    assert len(summary["tool_calls"]) == len(ToolCallStatus)  # type: ignore[arg-type]
    assert len(json.dumps({**summary, "seconds": 1234.567890123})) < 1000
