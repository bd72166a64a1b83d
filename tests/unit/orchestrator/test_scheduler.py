"""The scheduler on shards: streams, resumes at the stage, retries lost workers a bounded number of times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.flow.stopping import InterruptedRun, StopRequest
from orchestrator.runs.folder import RoundFolder
from policies.base.errors import (
    ArtifactError,
    LeaseError,
    ResumeError,
    RolloutError,
    WorkerLostError,
)
from policies.base.records import Prompt
from policies.storage.artifacts import (
    Marker,
    content_digest,
    find_damage,
    marker_path,
    read_marker,
    read_records,
    write_draft,
    write_records,
)
from tests.support.recorded_shards import build

INPUTS = {"prompts": "", "settings": "s", "schema": "1"}


def finish(path: Path, n: int, inputs: dict[str, str] = INPUTS) -> Marker:
    return write_records(path, Prompt, [], summary={"n": n}, inputs=inputs)


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
    finish(shards[0].of("trajectories"), 7)
    finish(shards[0].of("verdicts"), 8, INPUTS | {"trajectories": content_digest([])})
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


def test_workers_write_on_paths_of_their_own_attempt_and_the_driver_moves_the_files(
    tmp_path: Path,
) -> None:
    calls: list[str] = []
    written: list[str] = []

    def fail(call: str) -> None:
        written.append(call)
        if call == "a:1" and calls.count(call) == 1:
            raise WorkerLostError("gone")

    pipeline, shards = build(tmp_path, calls, fail, epoch=7)
    pipeline.run(shards)
    for shard in shards:
        for kind in ("trajectories", "verdicts", "examples"):
            assert read_records(shard.of(kind), Prompt) == []
    left = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "attempts").glob("*"))
    assert left == ["attempts/e000007-0001", "attempts/e000007-0002"], "a try has its own path"
    assert not list((tmp_path / "attempts").rglob("*.parquet")), "what was committed was moved"


def test_a_late_file_of_a_worker_that_was_given_up_is_never_listed(tmp_path: Path) -> None:
    """A zombie finishes its write after another worker has done the shard."""
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "a:0" and calls.count(call) == 1:
            raise WorkerLostError("gone")

    pipeline, shards = build(tmp_path, calls, fail)
    pipeline.run(shards)
    before = shards[0].of("trajectories").read_bytes()
    late = [Prompt(id="zombie", messages=())]
    write_draft(shards[0].attempt(1, 1).of("trajectories"), Prompt, late)
    assert shards[0].of("trajectories").read_bytes() == before
    assert RoundFolder(tmp_path).shards("trajectories") == [s.of("trajectories") for s in shards]
    again, shards = build(tmp_path, calls)
    assert again.run(shards)["a"] == [{"n": 1}] * 3


def test_a_file_made_from_other_inputs_stops_the_run_and_says_which(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls)
    finish(shards[1].of("trajectories"), 7, INPUTS | {"settings": "other", "policy": "p"})
    with pytest.raises(
        ResumeError, match=r"shard-0001\.parquet was made from other policy, settings"
    ):
        pipeline.run(shards)
    assert calls == []


def test_a_file_that_does_not_say_what_it_was_made_from_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls)
    finish(shards[0].of("trajectories"), 7, {})
    assert pipeline.run(shards)["a"][0] == {"n": 1}
    assert "a:0" in calls


def test_what_was_made_from_a_lost_file_never_counts_again_even_after_another_crash(
    tmp_path: Path,
) -> None:
    """The samples come out differently when they are made again; the old verdicts must not meet them."""
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "b:0" and calls.count(call) == 1:
            raise RolloutError("a crash between the two")

    pipeline, shards = build(tmp_path, calls, fail)
    finish(shards[0].of("verdicts"), 8, INPUTS | {"trajectories": "of other samples"})
    with pytest.raises(RolloutError):
        pipeline.run(shards)
    again, _ = build(tmp_path, calls)
    assert again.run(shards)["b"] == [{"n": 1}] * 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip, cut, lose])
@pytest.mark.parametrize("what", ["file", "marker"])
def test_a_damaged_file_goes_into_quarantine_and_is_made_again_with_what_builds_on_it(
    tmp_path: Path, harm: Callable[[Path], None], what: str
) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls)
    pipeline.run(shards)
    calls.clear()
    path = shards[1].of("verdicts")
    harm(path if what == "file" else marker_path(path))
    warnings: list[str] = []
    again, _ = build(tmp_path, calls, on_warning=warnings.append)
    again.run(shards)
    assert calls == ["b:1", "c:1"]
    assert find_damage(path) is None
    if what == "marker" and harm is lose:  # it was never finished then: nothing to complain about
        return
    assert "verdicts/shard-0001.parquet" in warnings[0]
    reasons = sorted((tmp_path / "quarantine").rglob("*.reason.json"))
    assert [r.name for r in reasons] == ["shard-0001.parquet.reason.json"]
    assert "verdicts/shard-0001.parquet" in reasons[0].read_text()


def test_input_that_is_damaged_while_the_round_runs_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls)

    def fail(call: str) -> None:
        if call == "b:1" and calls.count(call) == 1:
            flip(shards[1].of("trajectories"))
            raise ArtifactError("changed since it was written")

    pipeline, _ = build(tmp_path, calls, fail)
    summaries = pipeline.run(shards)
    assert summaries["c"] == [{"n": 1}] * 3
    assert (calls.count("a:1"), calls.count("b:1"), calls.count("a:0")) == (2, 2, 1)
    assert list((tmp_path / "quarantine").rglob("shard-0001.parquet"))


def test_an_artifact_error_without_damage_stops_the_round(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "b:1":
            raise ArtifactError("files that do not belong together")

    pipeline, shards = build(tmp_path, calls, fail)
    with pytest.raises(ArtifactError, match="belong together"):
        pipeline.run(shards)


def test_a_draft_that_is_not_what_its_worker_reported_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    pipeline, shards = build(tmp_path, calls, lies=1)
    assert pipeline.run(shards)["a"] == [{"n": 1}] * 3
    assert calls.count("a:0") == 2
    pipeline, shards = build(tmp_path / "again", calls, lies=9)
    with pytest.raises(ArtifactError, match="not what its worker reported"):
        pipeline.run(shards)


def test_a_driver_that_lost_the_run_finishes_nothing(tmp_path: Path) -> None:
    calls: list[str] = []

    def guard() -> None:
        raise LeaseError("lost")

    pipeline, shards = build(tmp_path, calls, guard=guard)
    with pytest.raises(LeaseError):
        pipeline.run(shards)
    assert not shards[0].of("trajectories").exists()
    assert read_marker(shards[0].of("trajectories")) is None


def test_the_item_that_kills_its_worker_is_found_left_out_and_written_down(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(call: str) -> None:
        if call in ("a:1", "a:1 only y", "a:1 only z"):
            raise WorkerLostError("gone")

    warnings: list[str] = []
    pipeline, shards = build(
        tmp_path, calls, fail, items=lambda s: ["x", "y", "z", "w"], on_warning=warnings.append
    )
    summaries = pipeline.run(shards)
    of_shard = [c for c in calls if c.startswith("a:1")]
    assert of_shard == [
        *["a:1"] * 3,
        "a:1 only x",
        *["a:1 only y"] * 2,
        *["a:1 only z"] * 2,
        "a:1 only w",
        "a:1 skip y z",
    ]
    assert summaries["a"] == [{"n": 1}] * 3
    assert any("'y' killed its worker" in w for w in warnings)
    notes = [json.loads(p.read_text()) for p in (tmp_path / "quarantine").glob("*.reason.json")]
    assert sorted(n["item"] for n in notes) == ["y", "z"]


def test_a_shard_that_only_dies_as_a_whole_stops_the_round(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail(call: str) -> None:
        if call == "a:1":
            raise WorkerLostError("gone")

    pipeline, shards = build(tmp_path, calls, fail, items=lambda s: ["x"])
    with pytest.raises(WorkerLostError, match=r"Shard 1 lost its worker 4 times"):
        pipeline.run(shards)
