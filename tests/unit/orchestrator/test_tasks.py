"""Tasks of several kinds in one scheduler: collective, the driver's own, shards; each with its own end and stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.flow.scheduler import Scheduler
from orchestrator.flow.stopping import InterruptedRun, StopRequest
from orchestrator.flow.task import Ask, Asks, Attempt, Exchange, Guard, Place, Task, rendezvous
from orchestrator.flow.waiting import Patience
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.quarantine import Quarantine
from policies.base.errors import DivergenceError, PawlError, WaitTimeoutError, WorkerLostError
from workers.cluster.inline import InlineCluster
from workers.cluster.seam import Call, Group, GroupSpec

SOON, LATE = Patience(0.05, "soon"), Patience(60.0, "late")


class Worker:
    """Does what it is told, and writes down that it did."""

    def __init__(self, calls: list[str], do: Callable[[str], None]) -> None:
        self.calls, self.do = calls, do

    def address(self) -> str:
        return "10.0.0.1"

    def open_rendezvous(self, address: str) -> int:
        self.calls.append(f"open {address}")
        return 7

    def work(self, what: str) -> dict[str, str]:
        self.calls.append(what)
        self.do(what)
        return {"did": what}


@dataclass(kw_only=True, eq=False)
class One(Task):
    """A call of one worker."""

    patience: Patience = LATE

    def exchange(self, attempt: Attempt) -> Exchange:
        (answer,) = yield Asks([Ask("work", (self.key,))], self.patience)
        return answer


@dataclass(kw_only=True, eq=False)
class All(Task):
    """A call of all workers of a group at once."""

    places: list[Place | None] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    """Milestones that it has come to, one for each death."""
    outcome: str = ""

    def exchange(self, attempt: Attempt) -> Exchange:
        assert self.group is not None
        self.places = yield from rendezvous(self.group.size, LATE, "loopback")
        asks = [Ask("work", (f"{self.key}-{n}",), worker=n) for n in range(self.group.size)]
        answers = yield Asks(asks, LATE)
        return {"all": [answer["did"] for answer in answers]}

    def milestone(self) -> int:
        return self.reached.pop(0) if self.reached else 0

    def settled(self, attempt: Attempt, error: PawlError, guard: Guard) -> dict[str, Any] | None:
        return {"outcome": self.outcome} if self.outcome else None


def build(
    tmp_path: Path, do: Callable[[str], None] = lambda what: None, cluster: Any = None
) -> tuple[Scheduler, Group, list[str]]:
    calls: list[str] = []
    cluster = cluster or InlineCluster()
    group = cluster.start_group(GroupSpec("w", Worker, {"calls": calls, "do": do}, size=2))
    scheduler = Scheduler(
        cluster=cluster,
        stop=StopRequest(),
        max_in_flight=2,
        max_attempts=2,
        quarantine=Quarantine(RunFolder(tmp_path)),
        epoch=1,
        guard=lambda: None,
    )
    return scheduler, group, calls


def test_tasks_of_several_kinds_run_in_one_graph_each_after_what_it_needs(tmp_path: Path) -> None:
    scheduler, group, calls = build(tmp_path)
    together = All(key="together", name="all", group=group)
    found = scheduler.run(
        [
            together,
            One(key="alone", name="one", group=group, chain="c"),
            Task(key="own", name="driver", after=("together", "alone")),
            One(key="last", name="one", group=group, after=("own",)),
        ]
    )
    assert found["together"] == {"all": ["together-0", "together-1"]}
    assert found["own"] == {}
    assert calls.index("last") > max(calls.index(c) for c in ("together-1", "alone"))
    first, second = together.places
    assert first == Place("loopback", 7, 0, 2, 2)
    assert second is not None
    assert second.rank == 1


def test_a_collective_task_that_loses_a_worker_is_done_again_by_all(tmp_path: Path) -> None:
    died: list[str] = []

    def do(what: str) -> None:
        if what == "t-1" and not died:
            died.append(what)
            raise WorkerLostError("gone")

    scheduler, group, calls = build(tmp_path, do)
    scheduler.run([All(key="t", name="all", group=group)])
    assert [c for c in calls if c != "open loopback"] == ["t-0", "t-1", "t-0", "t-1"]
    assert calls.count("open loopback") == 2, "they meet anew"


def test_deaths_count_from_the_last_milestone_on(tmp_path: Path) -> None:
    left = [3]

    def do(what: str) -> None:
        if what == "t-0" and left[0]:
            left[0] -= 1
            raise WorkerLostError("gone")

    scheduler, group, _ = build(tmp_path, do)
    scheduler.run([All(key="t", name="all", group=group, reached=[0, 1, 2, 3])])
    left[0] = 3
    with pytest.raises(WorkerLostError, match="t lost its worker 2 times"):
        scheduler.run([All(key="t", name="all", group=group)])


def test_an_error_that_is_an_outcome_ends_its_task_and_no_other(tmp_path: Path) -> None:
    def do(what: str) -> None:
        if what.startswith("t-"):
            raise DivergenceError("not finite")

    scheduler, group, calls = build(tmp_path, do)
    together = All(key="t", name="all", group=group, outcome="diverged")
    found = scheduler.run([together, One(key="other", name="one", group=group)])
    assert found["t"] == {"outcome": "diverged"}
    assert "other" in calls
    with pytest.raises(DivergenceError):
        scheduler.run([All(key="t", name="all", group=group)])


class Slow(InlineCluster):
    """Answers the calls of `quick` tasks one at a time, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.abandoned: list[str] = []

    def wait_any(self, calls: Any, timeout_seconds: float) -> list[Call]:
        done = [call for call in calls if call.value and "quick" in call.value["did"]]
        if not done:
            raise WaitTimeoutError("none")
        return done[:1]

    def abandon(self, call: Call, reason: str) -> None:
        self.abandoned.append(call.label)


def test_each_kind_of_task_is_waited_for_with_its_own_patience(tmp_path: Path) -> None:
    scheduler, group, _ = build(tmp_path, cluster=Slow())
    hangs = One(key="hangs", name="one", group=group, patience=SOON)
    quick = [One(key=f"quick-{n}", name="one", group=group) for n in range(3)]
    with pytest.raises(WaitTimeoutError, match=r"Set by: soon"):
        scheduler.run([hangs, *quick])


def test_a_stop_waits_for_the_shard_in_hand_and_not_for_an_update(tmp_path: Path) -> None:
    scheduler, group, calls = build(tmp_path, cluster=Slow())
    scheduler.stop.requested = True
    update = One(key="update", name="one", group=group)
    with pytest.raises(InterruptedRun):
        scheduler.run([update])
    assert calls == [], "nothing begins after a stop"
    scheduler.stop.requested = False

    def do(what: str) -> None:
        scheduler.stop.requested = what == "quick-shard"

    scheduler, group, calls = build(tmp_path, do, cluster=Slow())
    finished: list[str] = []
    scheduler.on_task = lambda task, summary: finished.append(task.key)
    with pytest.raises(InterruptedRun):
        scheduler.run(
            [
                One(key="update", name="one", group=group),
                One(key="quick-shard", name="one", group=group, chain="c"),
                One(key="quick-next", name="one", group=group, chain="d"),
            ]
        )
    assert finished == ["quick-shard"]
    assert calls == ["update", "quick-shard"]
