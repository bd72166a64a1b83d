"""Tracking when the disk or the server is in trouble for long: the run goes on, and what waits stays bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.rounds.context import Run
from orchestrator.rounds.recording import record_what_was_missed
from orchestrator.runs.events import EventKind, EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.state import results_of
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.push import SendingThread
from orchestrator.tracking.spool import FinishLine, RoundLine, Spool, StepsLine, TrackedRun
from orchestrator.tracking.tracker import SpooledTracker
from policies.base.errors import StorageError, TrackingError
from tests.support.full_disk import largest_file
from tests.support.run_folders import RUN_ID, make_run

RUN = TrackedRun(run_id=RUN_ID, name="q-1", experiment="multiply", params={"seed": "0"})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SendingThread, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(SendingThread, "LONGEST_DELAY", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "q-1", rounds=2)


def tracker_of(
    folder: RunFolder, sink: MemorySink, warnings: list[str], backlog: int = 10**6
) -> SpooledTracker:
    return SpooledTracker(
        folder,
        lambda: sink,
        where="http://host",
        table_rows=4,
        register_policy=False,
        on_warning=warnings.append,
        finish_timeout=60.0,
        max_backlog_bytes=backlog,
    )


def test_a_line_that_did_not_fit_on_the_disk_spoils_no_other_and_is_written_with_the_next(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path)
    spool.append(FinishLine(at=1, status="FINISHED", reason="first"))
    with largest_file(spool.size() + 20), pytest.raises(StorageError, match="large"):
        spool.append(FinishLine(at=2, status="FINISHED", reason="x" * 100))
    assert [getattr(line, "at", None) for line, _ in spool.read()] == [1]
    spool.append(FinishLine(at=3, status="FINISHED", reason="third"))
    assert [getattr(line, "at", None) for line, _ in spool.read()] == [1, 2, 3]


def test_a_full_disk_under_the_spool_is_told_once_and_the_run_goes_on(folder: RunFolder) -> None:
    sink, warnings = MemorySink(), list[str]()
    tracker = tracker_of(folder, sink, warnings)
    tracker.start(RUN)
    results = results_of(folder)
    with largest_file(Spool(folder.tracking, writes=False).size()):
        for result in results[:2]:
            tracker.round_finished(result, {}, folder.round(result.round))
    tracker.round_finished(results[2], {}, folder.round(2))
    tracker.finish("FINISHED")
    assert [w for w in warnings if "cannot be written" in w] == warnings
    assert len(warnings) == 1
    assert sink.runs["q-1"] == "FINISHED"
    assert {"q-1/0", "q-1/1", "q-1/2"} <= set(sink.runs), (
        "what did not fit is told when there is room"
    )


def test_a_round_that_never_fitted_into_the_spool_is_told_by_the_driver_that_resumes(
    folder: RunFolder,
) -> None:
    sink, warnings = MemorySink(), list[str]()
    tracker, events = tracker_of(folder, sink, warnings), EventLog(folder.events)
    tracker.start(RUN)
    with largest_file(Spool(folder.tracking, writes=False).size()):
        for result in results_of(folder):
            tracker.round_finished(result, {}, folder.round(result.round))
        tracker.finish("FAILED")
    for result in results_of(folder):  # the events had room, so they say that all was told
        events.emit(EventKind.ROUND_FINISHED, round_index=result.round)
    assert set(sink.runs) == {"q-1"}
    again = tracker_of(folder, sink, warnings)
    again.start(RUN)
    told = SimpleNamespace(
        journal=Journal(folder.journal),
        events=EventLog(folder.events),
        tracker=again,
        folder=folder,
    )
    record_what_was_missed(cast(Run, told))
    again.finish("FINISHED")
    assert {"q-1/0", "q-1/1", "q-1/2"} <= set(sink.runs)
    assert sink.runs["q-1"] == "FINISHED"
    rounds = [line for line, _ in Spool(folder.tracking).read() if isinstance(line, RoundLine)]
    assert [line.result.round for line in rounds] == [0, 1, 2], "once each"


def test_what_waits_for_a_server_that_stays_away_is_bounded_and_rounds_are_kept(
    folder: RunFolder,
) -> None:
    def away(_: str) -> None:
        raise TrackingError("no answer")

    sink, warnings = MemorySink(before_call=away), list[str]()
    tracker = tracker_of(folder, sink, warnings, backlog=20_000)
    tracker.start(RUN)
    for step in range(2000):
        tracker.steps(3, [{"step": step, "train/loss": 0.5, "kl": 0.1}])
    for result in results_of(folder):
        tracker.round_finished(result, {}, folder.round(result.round))
    spool = Spool(folder.tracking, writes=False)
    assert spool.size() < 30_000
    lines = [line for line, _ in spool.read()]
    assert 0 < sum(isinstance(line, StepsLine) for line in lines) < 2000
    assert [line.result.round for line in lines if isinstance(line, RoundLine)] == [0, 1, 2]
    assert len([w for w in warnings if "tracking.max_backlog_mb" in w]) == 1
    sink.before_call = lambda _: None
    tracker.finish("FINISHED")
    assert sink.runs["q-1"] == "FINISHED"
    assert {f"q-1/{index}" for index in (0, 1, 2)} <= set(sink.runs)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.005)


def test_the_sending_thread_survives_a_disk_that_has_no_room_for_its_offset(
    folder: RunFolder,
) -> None:
    room, calls = threading.Event(), list[str]()

    def wait_for_no_room(operation: str) -> None:
        assert room.wait(20)
        calls.append(operation)

    sink, warnings = MemorySink(before_call=wait_for_no_room), list[str]()
    tracker = tracker_of(folder, sink, warnings)
    tracker.start(RUN)
    for result in results_of(folder):
        tracker.round_finished(result, {}, folder.round(result.round))
    with largest_file(3):  # the offset has more bytes than that
        room.set()
        wait_until(lambda: calls.count("open_run") >= 3)
    tracker.finish("FINISHED")
    assert sink.runs["q-1"] == "FINISHED"
    assert Spool(folder.tracking, writes=False).left() == 0
    assert len([w for w in warnings if "does not answer" in w]) == 1
