"""Who does what since when: what the driver keeps of its open calls, and what becomes of a silent worker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.flow.waiting import Patience, wait_for_any
from orchestrator.flow.watchdog import Watch, WatchedCluster
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.worker_activity import activity_lines, read_activity
from policies.base.errors import WaitTimeoutError, WorkerLostError
from workers.cluster import heartbeat
from workers.cluster.inline import InlineCluster
from workers.cluster.seam import NO_FILES, Call, Cluster, Files, Group, GroupSpec


@dataclass(eq=False)
class HangingCall:
    """A call that is never answered; its worker works until it is ended."""

    label: str
    report: str
    running: bool = True
    lost: str = ""

    def standing(self) -> str:
        return "running in process 71 of node 10.0.0.2"


@dataclass
class HangingGroup:
    """Workers that never answer."""

    name: str = "rollout"
    size: int = 1
    calls: list[HangingCall] = field(default_factory=list)
    busy: bool = False
    """The worker has another call to do first."""

    def submit(
        self,
        method: str,
        *args: Any,
        worker: int | None = None,
        label: str = "",
        report: str = "",
        files: Files = NO_FILES,
    ) -> HangingCall:
        text = f"{self.name} 0: {method} {label}"
        self.calls.append(HangingCall(text, report, running=not self.busy))
        return self.calls[-1]

    def ready(self) -> list[int]:
        return [0]

    def restart_with(self, files: Files, /, **kwargs: Any) -> None:
        raise AssertionError("not asked for here")

    def pids(self) -> list[int]:
        return [71]


class HangingCluster:
    """The seam of `workers.cluster.seam`, with workers that never answer."""

    def __init__(self) -> None:
        self.group = HangingGroup()

    def start_group(self, spec: GroupSpec) -> HangingGroup:
        return self.group

    def gpus(self) -> int:
        return 0

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:
        assert list(groups) == [self.group], "it gets its own groups back"

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        ended = [c for c in calls if isinstance(c, HangingCall) and c.lost]
        if ended:
            return list(ended)
        time.sleep(min(timeout_seconds, 0.02))
        raise WaitTimeoutError("nothing yet")

    def result(self, call: Call, timeout_seconds: float) -> Any:
        assert isinstance(call, HangingCall)
        raise WorkerLostError(call.lost)

    def abandon(self, call: Call, reason: str) -> None:
        assert isinstance(call, HangingCall)
        call.lost = reason

    def close(self) -> None:
        """Nothing to stop."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def watched(
    folder: RunFolder, inner: Cluster, silence_seconds: float = 600.0
) -> tuple[WatchedCluster, Group, list[str]]:
    said: list[str] = []
    cluster = WatchedCluster(inner, Watch(folder, silence_seconds, said.append))
    group = cluster.start_group(GroupSpec("rollout", object, reports=frozenset({"sample"})))
    cluster.wait_ready([group], 1.0)
    return cluster, group, said


def wait(cluster: WatchedCluster, call: Call, patience: Patience) -> list[Call]:
    """Wait for a call from now on."""
    return wait_for_any(cluster, {call: patience}, {patience: time.monotonic()})


def look(cluster: WatchedCluster, call: Call, seconds: float) -> list[Call]:
    """What finishes within `seconds`."""
    try:
        return wait(cluster, call, Patience(seconds))
    except WaitTimeoutError:
        return []


def test_onlookers_see_which_worker_does_what_since_when_and_how_far_it_is(
    folder: RunFolder,
) -> None:
    inner = HangingCluster()
    cluster, group, _ = watched(folder, inner)
    call = group.submit("sample", label="shard-0003")
    report = Path(inner.group.calls[0].report)
    heartbeat.write_unsynced(
        report, {"host": "n1", "pid": 71, "beats": 3, "counts": {"tokens": 9120}}
    )
    look(cluster, call, 1.1)
    activity = read_activity(folder)
    assert activity is not None
    (row,) = activity["calls"]
    assert (row["worker"], row["call"], row["running"]) == ("rollout 0", "sample shard-0003", True)
    assert row["counts"] == {"tokens": 9120}
    assert 0.9 < row["seconds"] < 5
    (line,) = activity_lines(activity)
    assert "rollout 0" in line
    assert "9120 tokens" in line
    assert "n1:71" in line


def test_what_an_onlooker_reads_grows_old_and_says_so(folder: RunFolder) -> None:
    row = {"worker": "rollout 0", "call": "sample", "running": True, "seconds": 5.0}
    old = {"age_seconds": 90.0, "calls": [row | {"quiet_seconds": 4.0, "counts": {}}]}
    lines = activity_lines(old)
    assert "no sign of life for 1 min 34 s" in lines[0]
    assert "for 1 min 35 s" in lines[0]
    assert lines[1] == "the driver last looked 1 min 30 s ago"


def test_a_worker_that_samples_and_makes_no_token_is_ended_and_its_work_is_free_again(
    folder: RunFolder,
) -> None:
    cluster, group, said = watched(folder, HangingCluster(), silence_seconds=0.3)
    started = time.monotonic()
    call = group.submit("sample", label="shard-0003")
    assert look(cluster, call, 20) == [call]
    assert 0.3 <= time.monotonic() - started < 5
    with pytest.raises(WorkerLostError, match="no sign of life"):
        cluster.result(call, 1.0)
    assert len(said) == 1
    assert "rollout 0: sample shard-0003" in said[0]
    assert "cluster.silence_timeout_seconds (0.3)" in said[0]


def test_a_worker_that_makes_tokens_is_left_alone(folder: RunFolder) -> None:
    inner = HangingCluster()
    cluster, group, said = watched(folder, inner, silence_seconds=0.5)
    call = group.submit("sample")
    stop = threading.Event()

    def work() -> None:
        for beats in range(1000):
            sign = {"host": "n1", "pid": 71, "beats": beats, "counts": {}}
            heartbeat.write_unsynced(Path(inner.group.calls[0].report), sign)
            if stop.wait(0.05):
                return

    thread = threading.Thread(target=work)
    thread.start()
    assert look(cluster, call, 1.5) == []
    stop.set()
    thread.join(10)
    assert said == []
    assert look(cluster, call, 5) == [call], "and when it stops it is found out"


@pytest.mark.parametrize("method", ["load_policy", "prefer"])
def test_methods_that_show_no_progress_are_not_taken_for_silent(
    folder: RunFolder, method: str
) -> None:
    cluster, group, said = watched(folder, HangingCluster(), silence_seconds=0.1)
    assert look(cluster, group.submit(method), 0.5) == []
    assert said == []


def test_a_call_that_waits_for_its_turn_is_not_silent(folder: RunFolder) -> None:
    inner = HangingCluster()
    cluster, group, said = watched(folder, inner, silence_seconds=0.2)
    inner.group.busy = True
    call = group.submit("sample")
    assert look(cluster, call, 0.6) == []
    inner.group.calls[0].running = True
    assert look(cluster, call, 0.1) == [], "its time begins when it does"
    assert look(cluster, call, 5) == [call]
    assert len(said) == 1


def test_nothing_is_left_behind_when_a_run_ends_or_after_a_driver_that_died(
    folder: RunFolder,
) -> None:
    folder.activity.write_text("{}")
    folder.activity_reports.mkdir()
    (folder.activity_reports / "9-1.json").write_text("{}")
    cluster, group, _ = watched(folder, HangingCluster())
    assert not folder.activity.exists()
    assert not folder.activity_reports.exists()
    call = group.submit("sample")
    look(cluster, call, 0.1)
    assert folder.activity.exists()
    cluster.close()
    assert list(folder.path.iterdir()) == []


def test_an_answered_call_is_forgotten_with_its_report(folder: RunFolder) -> None:
    cluster, group, _ = watched(folder, InlineCluster())
    call = group.submit("__repr__")
    wait(cluster, call, Patience(1.0))
    assert "object" in cluster.result(call, 1.0)
    time.sleep(1.0)
    second = group.submit("__str__")
    rows = json.loads(folder.activity.read_text())["calls"]
    assert [row["call"] for row in rows] == ["__str__"]
    cluster.result(second, 1.0)
    assert not list(folder.activity_reports.glob("*"))


def test_a_wait_that_ends_names_who_waited_for_what_and_the_setting(folder: RunFolder) -> None:
    cluster, group, _ = watched(folder, HangingCluster())
    call = group.submit("load_policy", label="version 2")
    with pytest.raises(WaitTimeoutError) as ended:
        wait(cluster, call, Patience(0.1, "cluster.sync_timeout_seconds"))
    text = str(ended.value)
    assert "the driver waited 0.1 s for an answer of rollout 0: load_policy version 2" in text
    assert "running in process 71 of node 10.0.0.2" in text
    assert "Set by: cluster.sync_timeout_seconds" in text
    assert "pawl doctor" in text


# --- the worker's side ----------------------------------------------------------------------------


def test_beats_add_up_and_are_written_at_most_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "activity" / "1.json"
    with heartbeat.reporting(str(path)):
        for _ in range(100):
            heartbeat.report_progress(tokens=2)
        assert not path.exists(), "a call of less than a second leaves no file"
        time.sleep(1.05)
        heartbeat.report_progress(tokens=1)
        heartbeat.report_progress(tokens=5)
    sign = heartbeat.read_sign(path)
    assert sign is not None
    assert (sign.beats, sign.counts) == (101, {"tokens": 201.0})
    before = path.read_bytes()
    heartbeat.report_progress(tokens=1)
    assert path.read_bytes() == before, "outside a call nobody is told"


def test_a_report_that_cannot_be_written_does_not_end_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    heartbeat.write_unsynced(tmp_path / "file" / "1.json", {})
    assert heartbeat.read_sign(tmp_path / "file" / "1.json") is None
    (tmp_path / "torn.json").write_text('{"host": "n')
    assert heartbeat.read_sign(tmp_path / "torn.json") is None
