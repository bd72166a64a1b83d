"""The shard pipeline: streams, resumes at the stage, retries lost workers a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.pipeline import Pipeline, Stage
from orchestrator.run_folder import RoundFolder, ShardPaths
from orchestrator.stopping import InterruptedRun, StopRequest
from policies.errors import RolloutError, WorkerLostError
from policies.records import Prompt
from policies.shards import write_records
from workers.cluster import Resources
from workers.inline import InlineCluster


class Recorder:
    """A worker that writes a shard file, remembers its calls, and fails as it is told to."""

    def __init__(self, calls: list[str], fail: Callable[[str], None]) -> None:
        self.calls = calls
        self.fail = fail

    def work(self, name: str, path: str) -> dict[str, Any]:
        self.calls.append(f"{name}:{Path(path).stem[-1]}")
        self.fail(self.calls[-1])
        return dict(write_records(Path(path), Prompt, [], summary={"n": 1}).summary)


def build(
    tmp_path: Path,
    calls: list[str],
    fail: Callable[[str], None] = lambda call: None,
    **settings: Any,
) -> tuple[Pipeline, list[ShardPaths]]:
    cluster = InlineCluster()
    group = cluster.start_group(
        "w",
        Recorder,
        {"calls": calls, "fail": fail},
        size=1,
        resources=Resources(),
        timeout_seconds=1,
    )

    def stage(name: str, kind: Any, after: tuple[str, ...] = ()) -> Stage:
        return Stage(
            name=name,
            group=group,
            method="work",
            arguments=lambda s: (name, str(s.of(kind))),
            outputs=lambda s: [s.of(kind)],
            after=after,
            starts_shard=not after,
        )

    stages = [
        stage("a", "trajectories"),
        stage("b", "verdicts", ("a",)),
        stage("c", "examples", ("b",)),
    ]
    arguments: dict[str, Any] = {
        "stop": StopRequest(),
        "max_in_flight": 2,
        "max_attempts": 3,
        "timeout_seconds": 5,
    }
    pipeline = Pipeline(cluster=cluster, stages=stages, **(arguments | settings))
    folder = RoundFolder(tmp_path)
    return pipeline, [folder.shard(i) for i in range(3)]


def test_every_shard_passes_every_stage_once_and_in_order(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls)
    summaries = pipeline.run(shards)
    assert sorted(calls) == sorted(f"{s}:{i}" for s in "abc" for i in range(3))
    assert all(
        calls.index(f"a:{i}") < calls.index(f"b:{i}") < calls.index(f"c:{i}") for i in range(3)
    )
    assert summaries == {name: [{"n": 1}] * 3 for name in "abc"}


def test_the_first_shard_is_finished_before_the_last_one_begins(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls, max_in_flight=1)
    pipeline.run(shards)
    assert calls.index("c:0") < calls.index("a:2")


def test_finished_files_are_not_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls)
    write_records(shards[0].of("trajectories"), Prompt, [], summary={"n": 7})
    write_records(shards[0].of("verdicts"), Prompt, [], summary={"n": 8})
    summaries = pipeline.run(shards)
    assert "a:0" not in calls
    assert "b:0" not in calls
    assert "c:0" in calls
    assert summaries["a"][0] == {"n": 7}


def test_a_lost_worker_costs_a_retry_and_no_result(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "b:1" and calls.count(call) == 1:
            raise WorkerLostError("gone")

    pipeline, shards = build(tmp_path, calls, fail)
    assert pipeline.run(shards)["b"] == [{"n": 1}] * 3
    assert calls.count("b:1") == 2


def test_a_shard_that_kills_its_worker_each_time_stops_the_round(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "a:1":
            raise WorkerLostError("gone")

    pipeline, shards = build(tmp_path, calls, fail)
    with pytest.raises(WorkerLostError, match=r"Shard 1 lost its worker 3 times"):
        pipeline.run(shards)
    assert calls.count("a:1") == 3


def test_an_error_of_the_work_itself_is_not_retried(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "a:0":
            raise RolloutError("wrong")

    pipeline, shards = build(tmp_path, calls, fail)
    with pytest.raises(RolloutError, match="wrong"):
        pipeline.run(shards)
    assert calls.count("a:0") == 1


def test_a_stop_request_finishes_the_shard_in_hand_and_begins_no_other(tmp_path: Path) -> None:
    calls: list[str] = []
    stop = StopRequest()

    def fail(call: str) -> None:
        if call == "a:0":
            stop.requested = True

    pipeline, shards = build(tmp_path, calls, fail, stop=stop, max_in_flight=1)
    with pytest.raises(InterruptedRun):
        pipeline.run(shards)
    assert calls == ["a:0", "b:0", "c:0"]
