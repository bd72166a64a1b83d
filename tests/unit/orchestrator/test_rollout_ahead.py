"""With `rollout.ahead: 1` the next round is sampled while an update runs: one key, the same exactness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase
from orchestrator.runs.samplers import sampling_version
from orchestrator.runs.state import results_of
from policies.base.records import Trajectory
from policies.storage.artifacts import marker_path, read_records
from tests.support.cut_journals import cut_journal
from tests.support.fake_runs import fake_config

AHEAD = {
    "engine": {"type": "fake"},
    "samples_per_prompt": 4,
    "prompts_per_shard": 3,
    "ahead": 1,
}


def run(home: Path, name: str = "run", **changes: Any) -> RunFolder:
    folder = RunFolder(home / name)
    config = fake_config(home, **{"rounds": 4, "rollout": AHEAD, **changes})
    run_experiment(config, folder, source="", observers=())
    return folder


def samplers(folder: RunFolder, index: int) -> set[int]:
    paths = folder.round(index).shards("trajectories")
    return {t.policy_version for path in paths for t in read_records(path, Trajectory)}


def events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events.read_text("utf-8").splitlines()]


def problems(folder: RunFolder) -> list[str]:
    return [check.name for check in audit(folder, deep=True) if check.verdict == "wrong"]


def test_one_key_samples_the_next_round_while_the_update_runs(tmp_path: Path) -> None:
    folder = run(tmp_path)
    results = results_of(folder)
    served = [result.after for result in results]
    assert served == [0, 1, 2, 3, 4]
    assert [samplers(folder, i) for i in (1, 2, 3, 4)] == [{0}, {0}, {1}, {2}]
    behind = [result.metrics["rollout/versions_behind"] for result in results[1:]]
    assert behind == [0.0, 1.0, 1.0, 1.0]
    rescored = [result.metrics.get("train/rescored_sequences", 0.0) for result in results[1:]]
    assert problems(folder) == []
    # Round 2's samples were there before round 1's update had been published.
    first = folder.round(2).shards("trajectories")[0]
    published = folder.policies / "0001" / "manifest.json"
    assert marker_path(first).stat().st_mtime_ns < published.stat().st_mtime_ns
    assert len(rescored) == 4


def test_nothing_is_sampled_ahead_of_the_last_round_or_without_the_key(tmp_path: Path) -> None:
    folder = run(tmp_path, rounds=2)
    assert folder.rounds() == [0, 1, 2]
    plain = run(tmp_path, "plain", rollout={**AHEAD, "ahead": 0})
    assert [samplers(plain, i) for i in (1, 2, 3)] == [{0}, {1}, {2}]
    assert all("rollout/versions_behind" not in r.metrics for r in results_of(plain))


@pytest.mark.parametrize("cut", [Phase.COLLECT, Phase.TRAIN, Phase.PUBLISH, Phase.ACCEPT])
def test_a_run_that_is_killed_goes_on_to_the_same_files(tmp_path: Path, cut: Phase) -> None:
    folder = run(tmp_path)
    whole = folder.journal.read_bytes()
    made = {p: p.read_bytes() for i in (1, 2, 3, 4) for p in folder.round(i).shards("examples")}
    entries = Journal(folder.journal, guard=lambda: None).entries
    place = next(i for i, e in enumerate(entries) if e.phase is cut and e.round == 2)
    cut_journal(folder, place)
    resume_experiment(folder)
    assert folder.journal.read_bytes() == whole
    assert {p: p.read_bytes() for p in made} == made
    assert problems(folder) == []


def test_samples_ahead_that_were_lost_are_made_again_by_the_version_that_made_them(
    tmp_path: Path,
) -> None:
    folder = run(tmp_path)
    whole = folder.journal.read_bytes()
    entries = Journal(folder.journal, guard=lambda: None).entries
    place = next(i for i, e in enumerate(entries) if e.phase is Phase.COLLECT and e.round == 3)
    cut_journal(folder, place)
    (lost, *_) = folder.round(3).shards("trajectories")
    lost.unlink()
    resume_experiment(folder)
    assert folder.journal.read_bytes() == whole
    assert samplers(folder, 3) == {1}


def test_rejected_rounds_leave_what_the_serving_version_sampled_and_no_other(
    tmp_path: Path,
) -> None:
    never = {"type": "if_better", "margin": 5.0}
    folder = run(tmp_path, acceptance=never, limits={"max_rejected_rounds": 9})
    results = results_of(folder)
    assert [r.after for r in results] == [0] * 5
    assert [samplers(folder, i) for i in (1, 2, 3, 4)] == [{0}] * 4
    reused = [r.metrics.get("train/reused_examples", 0.0) for r in results[1:]]
    assert reused[0] == 0
    assert reused[-1] > reused[1] > 0
    assert problems(folder) == []


def test_policies_that_sample_ahead_are_kept(tmp_path: Path) -> None:
    folder = run(tmp_path, rounds=5, retention={"policies": "best"})
    assert problems(folder) == []
    assert [samplers(folder, i) for i in (4, 5)] == [{2}, {3}]


def test_the_sampler_of_a_round_follows_from_who_served(tmp_path: Path) -> None:
    ahead, plain = fake_config(tmp_path, rollout=AHEAD), fake_config(tmp_path)
    served = [0, 1, 1, 3]
    assert [sampling_version(ahead, served, i) for i in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert [sampling_version(plain, served, i) for i in (1, 2, 3, 4)] == [0, 1, 1, 3]
