"""The tracker: the driver never waits, nothing is lost, and nothing lands twice."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.state import results_of
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.push import SendingThread
from orchestrator.tracking.spool import SendLock, TrackedRun, TrackingRefused
from orchestrator.tracking.tracker import NullTracker, SpooledTracker
from policies.base.errors import TrackingError
from policies.base.records import RoundResult, RoundStatus
from tests.support.run_folders import RUN_ID, make_run, phase_seconds

RUN = TrackedRun(run_id=RUN_ID, name="q-1", experiment="multiply", params={"seed": "0"})
DRIVER_WAITS_AT_MOST = 0.1
LONGEST_HICCUP = 2.0
"""Of one call on a busy machine: an fsync; far below the 20 seconds that the servers here hang."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SendingThread, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(SendingThread, "LONGEST_DELAY", 0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "q-1").path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> RunFolder:
    """A run folder of its own for each test; the shards are shared by links."""
    target = tmp_path / "q-1"
    target.mkdir()
    for path in finished.iterdir():
        (target / path.name).symlink_to(path)
    return RunFolder(target)


Start = Callable[..., SpooledTracker]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def start(folder: RunFolder, warnings: list[str]) -> Start:
    def make(
        sink: MemorySink, *, register: bool = False, rows: int = 64, timeout: float = 10.0
    ) -> SpooledTracker:
        return SpooledTracker(
            folder,
            lambda: sink,
            where="http://***@host",
            table_rows=rows,
            register_policy=register,
            on_warning=warnings.append,
            finish_timeout=timeout,
        )

    return make


def tell(tracker: SpooledTracker, folder: RunFolder, *rounds: int) -> None:
    for result in results_of(folder):
        if result.round in rounds:
            tracker.round_finished(result, phase_seconds(result.round), folder.round(result.round))


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.005)


def waited(calls: Sequence[Callable[[], None]]) -> list[float]:
    """Seconds of each call."""
    spent = []
    for call in calls:
        began = time.monotonic()
        call()
        spent.append(time.monotonic() - began)
    return spent


def test_the_driver_does_not_wait_for_a_server_that_hangs(
    folder: RunFolder, start: Start, warnings: list[str]
) -> None:
    sink, release = MemorySink(), threading.Event()

    def hang(_: str) -> None:
        release.wait(20)

    sink.before_call = hang
    tracker = start(sink, timeout=0.2)
    spent = waited(
        [
            lambda: tracker.start(RUN),
            *(partial(tell, tracker, folder, index) for index in (0, 1, 2)),
            lambda: tracker.artifact(folder.config, "config.json"),
        ]
    )
    assert median(spent) < DRIVER_WAITS_AT_MOST
    assert max(spent) < LONGEST_HICCUP
    began = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - began < 5
    assert [
        w for w in warnings if "6 tracking entries could not be sent" in w and "pawl resume" in w
    ]
    release.set()


def test_an_outage_is_told_once_and_its_end_once_and_everything_lands(
    folder: RunFolder, start: Start, warnings: list[str]
) -> None:
    sink, away = MemorySink(), threading.Event()

    def fail(_: str) -> None:
        if away.is_set():
            raise TrackingError("connection refused")

    sink.before_call = fail
    tracker = start(sink)
    tracker.start(RUN)
    tell(tracker, folder, 0)
    wait_until(lambda: sink.runs.get("q-1/0") == "FINISHED")
    away.set()
    tell(tracker, folder, 1)
    wait_until(lambda: len(warnings) == 1)
    tell(tracker, folder, 2)
    time.sleep(0.1)
    away.clear()
    tracker.finish("FINISHED")
    assert len(warnings) == 2
    assert "http://***@host does not answer (connection refused)" in warnings[0]
    assert str(folder.tracking / "spool.jsonl") in warnings[0]
    assert "answers again" in warnings[1]
    assert sink.history(None, "eval/pass_at_1") == [(0, 0.29), (1, 0.39), (2, 0.55)]
    assert sink.runs["q-1"] == "FINISHED"


@pytest.mark.parametrize("cut_after", range(1, 14))
def test_a_crash_after_any_call_to_the_server_leaves_nothing_out_and_nothing_twice(
    folder: RunFolder, start: Start, cut_after: int
) -> None:
    whole = MemorySink()
    sink = MemorySink()

    def die(_: str) -> None:
        if len(sink.calls) >= cut_after:
            raise TrackingError("the process died here")

    sink.before_call = die
    first = start(sink, timeout=0.02)
    first.start(RUN)
    tell(first, folder, 0, 1)
    wait_until(lambda: len(sink.calls) == cut_after)
    first.finish("KILLED")
    sink.before_call = lambda _: None
    second = start(sink)
    second.start(RUN.model_copy(update={"resumed": True}))
    tell(second, folder, 0, 1, 2)
    second.finish("FINISHED")
    for other in folder.tracking.iterdir():
        other.unlink()
    straight = start(whole)
    straight.start(RUN)
    tell(straight, folder, 0, 1, 2)
    straight.finish("FINISHED")
    expected = {
        (run, p.name, p.value, p.step) for run, points in whole.points.items() for p in points
    }
    seen = [(run, p.name, p.value, p.step) for run, points in sink.points.items() for p in points]
    assert len(seen) == len(set(seen))
    assert set(seen) == expected
    assert sink.runs == whole.runs
    assert sink.tables == whole.tables


def test_a_lost_offset_only_sends_the_same_again(folder: RunFolder, start: Start) -> None:
    sink = MemorySink()
    first = start(sink)
    first.start(RUN)
    tell(first, folder, 0, 1)
    first.finish("KILLED")
    before = {run: set(points) for run, points in sink.points.items()}
    (folder.tracking / "offset.json").unlink()
    second = start(sink)
    second.finish("FINISHED")
    assert sink.points == before
    assert sink.runs["q-1"] == "FINISHED"


def test_a_resumed_run_is_running_again_until_it_ends(folder: RunFolder, start: Start) -> None:
    sink = MemorySink()
    first = start(sink)
    first.start(RUN)
    first.finish("KILLED", "interrupted")
    assert sink.runs == {"q-1": "KILLED"}
    second = start(sink)
    second.start(RUN)
    wait_until(lambda: sink.runs["q-1"] == "RUNNING")
    second.finish("FAILED", "out of memory")
    assert sink.runs == {"q-1": "FAILED"}


def test_what_the_server_refuses_is_left_out_and_told_and_the_rest_lands(
    folder: RunFolder, start: Start, warnings: list[str]
) -> None:
    sink = MemorySink()

    def refuse(operation: str) -> None:
        if operation == "table":
            raise TrackingRefused("tables are forbidden")

    sink.before_call = refuse
    tracker = start(sink)
    tracker.start(RUN)
    tell(tracker, folder, 1, 2)
    tracker.finish("FINISHED")
    assert sink.tables == {}
    assert sink.history(None, "eval/pass_at_1") == [(1, 0.39), (2, 0.55)]
    assert sorted(w.partition(":")[0] for w in warnings) == [
        f"tracking left out the table {name}"
        for name in ("evaluation_samples.json", "pairs.json", "samples.json")
    ]


def test_a_damaged_shard_costs_its_table_and_nothing_else(
    tmp_path: Path, warnings: list[str]
) -> None:
    folder = make_run(tmp_path / "q-1", rounds=1)
    folder.round(1).shard(0).of("trajectories").write_bytes(b"PAR1 rubbish")
    sink = MemorySink()
    tracker = SpooledTracker(
        folder,
        lambda: sink,
        where="x",
        table_rows=4,
        register_policy=False,
        on_warning=warnings.append,
    )
    tracker.start(RUN)
    tell(tracker, folder, 0, 1)
    tracker.finish("FINISHED")
    assert "q-1/1/samples.json" not in sink.tables
    assert sink.runs["q-1/1"] == "FINISHED"
    assert any("samples.json" in w and "changed since it was written" in w for w in warnings)


def test_a_value_that_is_not_finite_is_told_once_and_left_out(
    folder: RunFolder, start: Start, warnings: list[str]
) -> None:
    sink = MemorySink()
    tracker = start(sink)
    tracker.start(RUN)
    for index in (1, 2):
        metrics = {"kl": math.nan, "eval/pass@1": 0.5}
        result = RoundResult(
            round=index,
            status=RoundStatus.KEPT,
            before=0,
            after=0,
            reference="version 0",
            metrics=metrics,
        )
        tracker.round_finished(result, {}, folder.round(index))
    tracker.finish("FINISHED")
    assert sink.history(None, "kl") == []
    assert sink.history(None, "eval/pass_at_1") == [(1, 0.5), (2, 0.5)]
    assert [w for w in warnings if "kl" in w] == [
        "metric kl is nan, which no curve can show; such values are left out"
    ]


def test_two_processes_do_not_send_at_once(
    folder: RunFolder, start: Start, warnings: list[str]
) -> None:
    folder.tracking.mkdir()
    other = SendLock(folder.tracking)
    assert other.acquire()
    sink = MemorySink()
    tracker = start(sink)
    tracker.start(RUN)
    wait_until(lambda: any("another process" in w for w in warnings))
    assert sink.calls == []
    other.release()
    tracker.finish("FINISHED")
    assert sink.runs == {"q-1": "FINISHED"}


def test_an_artifact_and_the_report_are_sent(folder: RunFolder, start: Start) -> None:
    sink = MemorySink()
    tracker = start(sink)
    tracker.start(RUN)
    tracker.artifact(folder.config, "config/resolved.json")
    tracker.artifact(folder.path / "missing", "missing.json")
    tracker.finish("FINISHED")
    assert sink.artifacts["config/resolved.json"] == folder.config.read_bytes()
    assert b"<!doctype html>" in sink.artifacts["report.html"]
    assert sorted(sink.artifacts) == ["config/resolved.json", "report.html", "report.md"]


def test_without_tracking_the_report_is_still_written(
    folder: RunFolder, warnings: list[str]
) -> None:
    tracker = NullTracker(folder, on_warning=warnings.append)
    tracker.start(RUN)
    tracker.finish("FINISHED")
    assert (folder.path / "report.html").is_file()
    assert not folder.tracking.exists()
    assert warnings == []
