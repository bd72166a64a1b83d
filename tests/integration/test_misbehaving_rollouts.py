"""A whole run in which policy, tools and environment do what they should not: all is recorded, nothing stops."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from policies.base.records import (
    Ending,
    RoundResult,
    RoundStatus,
    ToolCallStatus,
    Trajectory,
    TrajectoryStatus,
)
from policies.storage.artifacts import read_records
from policies.storage.fake_model import write_fake_model
from tests.attacks.victims import descendants
from tests.support.misbehaving import HABITS

MISBEHAVING = Path(__file__).parents[1] / "support" / "misbehaving.py"
TOOL_LOOP = {
    "engine": {"type": f"{MISBEHAVING}:MisbehavingEngine"},
    "max_tokens": 600,
    "strategy": {
        "type": "tool_loop",
        "max_turns": 3,
        "max_trajectory_tokens": 900,
        "calls": {"type": "hermes"},
        "tools": [
            {
                "type": "function",
                "function": f"{MISBEHAVING.with_name('misbehaving_tool.py')}:behave",
                "timeout_seconds": 1,
                "max_output_characters": 300,
            }
        ],
    },
}
EPISODES = {
    "engine": {"type": "fake"},
    "strategy": {
        "type": "episode",
        "max_turns": 3,
        "environment": {"type": f"{MISBEHAVING}:UnrulyEnvironment", "timeout_seconds": 0.3},
    },
}


def run(path: Path, rollout: dict[str, Any]) -> tuple[RoundResult, list[Trajectory]]:
    """Result and trajectories of round 1, after which no process and no thread of the run is left."""
    write_fake_model(path / "model", skill=0.3)
    arithmetic = {"type": "arithmetic", "low": 2, "high": 5, "held_out": 3}
    tree = {
        "rounds": 1,
        "policy": {"model": str(path / "model")},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": 7,
        },
        "rollout": rollout | {"samples_per_prompt": 2, "prompts_per_shard": 4},
        "evaluation": {"samples_per_prompt": 1},
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake"}},
        "limits": {"max_failed_trajectories": 0.9},
        "cluster": {"backend": "inline"},
        "tracking": {"enabled": False},
    }
    before = descendants({os.getpid()}), threading.active_count()
    folder = RunFolder(path / "run")
    results = run_experiment(RunConfig.model_validate(tree), folder, source="").results
    assert len(results) == 2
    assert descendants({os.getpid()}) <= before[0]
    deadline = time.monotonic() + 20  # threads that hang in an environment end when it does
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before[1]
    rows = [t for p in folder.round(1).shards("trajectories") for t in read_records(p, Trajectory)]
    return results[1], rows


def endings(rows: list[Trajectory]) -> Counter[tuple[TrajectoryStatus, Ending | None]]:
    return Counter((row.status, row.ending) for row in rows)


def test_whatever_a_policy_does_with_its_tools_is_recorded_and_the_round_goes_on(
    tmp_path: Path,
) -> None:
    result, rows = run(tmp_path, TOOL_LOOP)
    assert result.status in (RoundStatus.IMPROVED, RoundStatus.KEPT, RoundStatus.SKIPPED)
    assert len(rows) == len(HABITS)
    assert Counter(c.status for row in rows for turn in row.turns for c in turn.calls) == {
        ToolCallStatus.OK: 1 + 3,
        ToolCallStatus.TIMED_OUT: 1,
        ToolCallStatus.FLOODED: 1,
        ToolCallStatus.FAILED: 4,
        ToolCallStatus.BAD_OUTPUT: 2,
        ToolCallStatus.UNPARSEABLE: 1,
        ToolCallStatus.UNKNOWN_TOOL: 1,
        ToolCallStatus.BAD_ARGUMENTS: 1,
    }
    assert endings(rows) == {
        (TrajectoryStatus.COMPLETE, Ending.ANSWERED): len(HABITS) - 2,
        (TrajectoryStatus.TRUNCATED, Ending.TURN_LIMIT): 1,  # called for ever
        (TrajectoryStatus.TRUNCATED, Ending.TOKEN_LIMIT): 1,  # wrote for ever
    }
    assert result.metrics["rollout/tool_calls/timed_out"] > 0


def test_whatever_an_environment_does_is_recorded_and_the_round_goes_on(tmp_path: Path) -> None:
    result, rows = run(tmp_path, EPISODES)
    assert result.status in (RoundStatus.IMPROVED, RoundStatus.KEPT, RoundStatus.SKIPPED)
    assert len(rows) == 14
    by_kind: dict[str, set[tuple[TrajectoryStatus, Ending | None]]] = {}
    for row in rows:
        by_kind.setdefault(row.prompt_id[0], set()).add((row.status, row.ending))
    expected = {
        "2": {(TrajectoryStatus.TRUNCATED, Ending.TURN_LIMIT)},
        "3": {(TrajectoryStatus.ERROR, Ending.FAILED)},
        "4": {(TrajectoryStatus.ERROR, Ending.FAILED)},
        "5": {(TrajectoryStatus.COMPLETE, Ending.ENVIRONMENT)},
    }
    assert by_kind == expected
    assert {row.outcome for row in rows if row.status is not TrajectoryStatus.ERROR} == {0.5}
    assert any("did not return within 0.3 s" in str(row.error) for row in rows)
    assert any("boo" in str(row.error) for row in rows)
