"""Runs tasks: the one place that recalls what is finished, waits, commits, tries again, and gives up.

*Consumes* tasks of any kind: each says what it reads and makes, whom it asks, and what it comes after. *Produces* their
artifacts, each with a marker that says what it was made from, and their summaries; payload never crosses the driver.
Workers write on paths of their own; only here is anything committed. *On failure*: a lost worker's task is tried again,
a bounded number of times without progress, then its items one by one, and those that kill it are put into quarantine;
a damaged artifact is put into quarantine and made again; any other error of a worker ends the round.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.flow.fingerprint import PLUG_INS
from orchestrator.flow.poison_items import PoisonSearch
from orchestrator.flow.stopping import StopRequest
from orchestrator.flow.task import UNFINISHED, Attempt, Finished, Summary, Task
from orchestrator.flow.tries import State, TaskClock, Try, cause_of
from orchestrator.flow.waiting import Patience, wait_for_any
from orchestrator.runs.quarantine import Quarantine
from policies.base.errors import (
    ArtifactError,
    CallNotStartedError,
    PawlError,
    ResumeError,
    WorkerLostError,
)
from policies.storage.artifacts import SHARD_SCHEMA
from workers.cluster.item_filter import WHOLE
from workers.cluster.seam import Call, Cluster

logger = logging.getLogger(__name__)


@dataclass
class Scheduler:
    """Runs tasks, bounded and back-pressured."""

    cluster: Cluster
    stop: StopRequest
    max_in_flight: int
    """Chains that are under way at once."""
    max_attempts: int
    quarantine: Quarantine
    epoch: int
    guard: Callable[[], None]
    """Raises when this driver may not commit any more."""
    on_task: Callable[[Task, Summary], None] = lambda task, summary: None
    on_warning: Callable[[str], None] = logger.warning
    plug_ins_changed: bool = False
    """A change of plug-ins was accepted in this round: what was made with the old ones is made again."""
    clocks: dict[str, TaskClock] = field(default_factory=dict)
    """By kind of task."""
    _states: dict[str, State] = field(default_factory=dict)
    _digests: dict[Path, str] = field(default_factory=dict)
    """Content digest of each artifact that is finished."""
    _calls: dict[Call, Try] = field(default_factory=dict)
    _heard: dict[Patience, float] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> dict[str, Summary]:
        """Finish every task; returns their summaries by key. Tasks stand behind those that they come after.

        Raises:
            ResumeError: an artifact was made from other policies, settings, code or artifacts than now.
            WorkerLostError: a task kills its worker each time and no single item can be blamed.
        """
        self._states = {task.key: State(task) for task in tasks}
        made = {artifact.path for task in tasks for artifact in task.makes}
        self._digests.clear()
        for artifact in (each for task in tasks for each in task.reads):
            if artifact.path not in made and artifact.path not in self._digests:
                marker = artifact.finished()
                self._digests[artifact.path] = "" if marker is None else marker.content_digest
        for state in self._states.values():
            self._recall(state)
        while not all(state.settled for state in self._states.values()):
            self._begin_what_can()
            self._stop_when_idle()
            if self._calls:
                self._take(self._wait())
            else:
                left = [s.task for s in self._states.values() if not s.settled]
                assert not left or any(map(self._may_begin, left)), "tasks wait for each other"
        return {key: dict(state.summary or {}) for key, state in self._states.items()}

    def summary_of(self, key: str) -> Summary:
        """Return what a task answered; empty while it is not finished, or not known."""
        state = self._states.get(key)
        return {} if state is None else dict(state.summary or {})

    # --- what is finished already

    def _recall(self, state: State) -> None:
        """A task whose artifacts are finished, whole, and made from what they would be made from now is not run."""
        task = state.task
        if not task.makes or self._set_damaged_aside(task):
            return
        if not self._may_begin(task):
            self._forget(state)
            return
        found = self._finished(task)
        if found is not None:
            self._remember(state, found)

    def _remember(
        self, state: State, made: Sequence[Finished], answer: Summary | None = None
    ) -> None:
        for artifact, marker in zip(state.task.makes, made, strict=True):
            self._digests[artifact.path] = marker.content_digest
        state.summary = dict(made[0].summary) if made else dict(answer or {})

    def _forget(self, state: State) -> None:
        """Take back a task whose input is made again: its artifacts do not count any more."""
        state.summary = None
        for artifact in state.task.makes:
            self._digests.pop(artifact.path, None)
            artifact.discard(self.guard)

    def _finished(self, task: Task) -> list[Finished] | None:
        markers = [artifact.finished() for artifact in task.makes]
        found = [marker for marker in markers if marker is not None and marker.inputs]
        if len(found) < len(markers):  # unfinished, or by an older Pawl that did not say of what
            return None
        expected = self._inputs(task)
        for artifact, marker in zip(task.makes, found, strict=True):
            differing = sorted(
                name
                for name in marker.inputs.keys() | expected.keys()
                if marker.inputs.get(name) != expected.get(name)
            )
            accepted = differing == [PLUG_INS] and self.plug_ins_changed  # the user took the change
            if differing and (accepted or task.takes_others):
                return None
            if differing:
                raise ResumeError(
                    f"{artifact.path} was made from other {', '.join(differing)} than the run has now. "
                    f"Fix: restore {' and '.join(differing)}; or delete the files of this round that are not "
                    "finished, and they are made again; or start a new run"
                )
        return found

    def _set_damaged_aside(self, task: Task) -> bool:
        """Tell whether an artifact that ought to be finished was damaged; it is in quarantine then."""
        damaged = False
        for artifact in task.makes:
            why = artifact.damage()
            if why is None or why == UNFINISHED:
                continue
            self.on_warning(f"{artifact.body}: {why}; it is in quarantine and made again")
            self.quarantine.set_aside(artifact.body, why)
            damaged = True
        return damaged

    def _inputs(self, task: Task) -> dict[str, str]:
        """Digest of everything that the task's artifacts are made from, by name."""
        upstream = {each.name: self._digests.get(each.path, "") for each in task.reads}
        return {**upstream, **task.input_digests, "schema": SHARD_SCHEMA}

    # --- what is to be done

    def _may_begin(self, task: Task) -> bool:
        return all(self._states[key].done for key in task.after)

    def _begin_what_can(self) -> None:
        begun = {s.task.chain for s in self._states.values() if s.running or s.done}
        unfinished = {s.task.chain for s in self._states.values() if not s.done}
        open_chains = len((begun & unfinished) - {""})
        for state in self._states.values():
            task = state.task
            if state.settled or state.running is not None or not self._may_begin(task):
                continue
            if task.chain not in begun or not task.chain:
                if self.stop.requested:
                    continue
                if task.chain:
                    if open_chains >= self.max_in_flight or self._are_busy(task):
                        continue
                    open_chains += 1
                    begun.add(task.chain)
            self._begin(state)

    def _are_busy(self, task: Task) -> bool:
        """Tell whether a group has one more of a kind of task than workers: none of them stands idle then."""
        tries = {id(t): t.state.task for t in self._calls.values()}.values()
        same = sum(1 for each in tries if each.name == task.name and each.group is task.group)
        return task.group is not None and same > task.group.size

    def _begin(self, state: State) -> None:
        task, search = state.task, state.search
        if not state.attempts:
            state.milestone = task.milestone()
        state.attempts += 1
        item_filter = WHOLE if search is None else search.item_filter()
        attempt = Attempt(self.epoch, state.attempts, item_filter)
        state.running = Try(state, attempt, self._inputs(task), task.exchange(attempt))
        self.clocks.setdefault(task.name, TaskClock()).begin()
        self._go_on(state.running, None)

    def _go_on(self, now: Try, answers: list[Any] | None) -> None:
        """Let a try ask further with what was answered, or end."""
        task = now.state.task
        try:
            now.asks = next(now.exchange) if answers is None else now.exchange.send(answers)
        except StopIteration as end:
            self._came(now, end.value)
            return
        except PawlError as error:
            self._failed(now, error)
            return
        assert task.group is not None, f"{task.key} asks nobody"
        now.waiting, now.answers, now.errors = {}, {}, []
        for number, ask in enumerate(now.asks.asks):
            call = task.group.submit(
                ask.method, *ask.arguments, worker=ask.worker, label=ask.label, files=ask.files
            )
            now.waiting[call] = number
            self._calls[call] = now
        self._heard[now.asks.patience] = time.monotonic()
        if not now.waiting:
            self._go_on(now, [])

    def _stop_when_idle(self) -> None:
        """A stop waits for shards in hand, and for nothing else: what they did is kept, an update has checkpoints."""
        if not any(now.state.task.chain for now in self._calls.values()):
            self.stop.check()

    def _wait(self) -> list[Call]:
        def look_up() -> None:
            self._stop_when_idle()
            self._look_at(self._calls.values())

        calls = {call: now.asks.patience for call, now in self._calls.items() if now.asks}
        return wait_for_any(self.cluster, calls, self._heard, look_up)

    @staticmethod
    def _look_at(tries: Iterable[Try]) -> None:
        for now in {id(each): each for each in tries}.values():
            now.state.task.look_up(now.attempt)

    # --- what came

    def _take(self, calls: Sequence[Call]) -> None:
        tries: Mapping[int, Try] = {id(self._calls[c]): self._calls[c] for c in calls}
        self._look_at(tries.values())
        for call in calls:
            now = self._calls.pop(call)
            assert now.asks is not None
            self._heard[now.asks.patience] = time.monotonic()
            number = now.waiting.pop(call)
            try:
                now.answers[number] = self.cluster.result(call, now.asks.patience.seconds)
            except PawlError as error:
                if now.asks.may_lose and isinstance(error, WorkerLostError):
                    now.answers[number] = error
                else:
                    now.errors.append(error)
        for now in tries.values():
            if any(isinstance(error, WorkerLostError) for error in now.errors):
                self._leave(now)
            if now.waiting:
                continue
            if now.errors:
                self._failed(now, cause_of(now.errors))
            else:
                self._go_on(now, [now.answers[number] for number in sorted(now.answers)])

    def _leave(self, now: Try) -> None:
        """End the workers that wait for one that died, so that the next try finds them free."""
        for call in now.waiting:
            self.cluster.abandon(
                call, f"another worker of the {now.state.task.name} failed: {now.errors[0]}"
            )
            with contextlib.suppress(
                PawlError
            ):  # it was ended on purpose: that it is lost is no news
                self.cluster.result(call, 60.0)
            self._calls.pop(call)
        now.waiting = {}

    def _ended(self, now: Try) -> tuple[State, Task]:
        state = now.state
        state.running = None
        self.clocks[state.task.name].end()
        return state, state.task

    def _came(self, now: Try, answer: Any) -> None:
        state, task = self._ended(now)
        if now.inputs != self._inputs(task):
            return  # its input was made again meanwhile
        if now.attempt.item_filter.only:
            assert state.search is not None
            state.search.survived()
            return
        try:
            made = task.commit(now.attempt, answer, now.inputs, self.guard)
        except ArtifactError as error:  # the draft is not what its worker reported
            state.repaired += 1
            if state.repaired >= self.max_attempts:
                self._give_up(task, error)
                return
            self.on_warning(f"{error}; it is made again")
            return
        self._remember(state, made, None if made else answer)
        self.on_task(task, dict(state.summary or {}))

    # --- what went wrong

    def _failed(self, now: Try, error: PawlError) -> None:
        state, task = self._ended(now)
        if isinstance(error, CallNotStartedError):
            return  # it stood behind what killed the worker: submitted again, and not to blame
        if isinstance(error, WorkerLostError):
            self._lost(now, error)
            return
        if isinstance(error, ArtifactError) and self._repair(state):
            return
        summary = task.settled(now.attempt, error, self.guard)
        if summary is None:
            self._give_up(task, error)
            return
        state.summary = summary

    def _give_up(self, task: Task, error: PawlError) -> None:
        """Raise the error; of a task that may wait, leave it and its like undone."""
        if not task.may_wait:
            raise error
        self.on_warning(f"{task.title}: {task.name} is put off: {error}")
        for state in self._states.values():
            state.left = state.left or (state.task.may_wait and not state.done)

    def _repair(self, state: State) -> bool:
        """Put damaged input of a task into quarantine, so that it is made again; False when all of it is whole."""
        reads = {artifact.path for artifact in state.task.reads}
        again: set[str] = set()
        for each in self._states.values():
            if {a.path for a in each.task.makes} & reads and self._set_damaged_aside(each.task):
                again.add(each.task.key)
        state.repaired += 1
        if not again or state.repaired >= self.max_attempts:
            return False
        for each in self._states.values():  # in order: what depends on what depends is found too
            if each.task.key in again or again & set(each.task.after):
                again.add(each.task.key)
                self._forget(each)
        return True

    def _lost(self, now: Try, error: WorkerLostError) -> None:
        """A worker died over a task: try again, then one by one, then give up."""
        state, task, search = now.state, now.state.task, now.state.search
        if search is not None and search.is_open:
            item = search.died()
            if item is not None:
                self._quarantine_item(task, item, error)
            return
        milestone = task.milestone()
        if milestone > state.milestone:
            state.milestone, state.deaths = milestone, 0
        state.deaths += 1
        warning = task.died(now.attempt, error, state.deaths)
        if state.deaths < self.max_attempts:
            if warning is None:
                logger.warning("%s; it is submitted again (attempt %d)", error, state.deaths + 1)
            else:
                self.on_warning(warning)
            return
        items = task.items() if search is None else None
        if items is None:
            final = task.given_up(error, state.deaths)
            final.__cause__ = error
            self._give_up(task, final)
            return
        state.search = PoisonSearch(items)
        self.on_warning(
            f"{error}. {task.title} lost its worker {state.deaths} times at {task.name}: its items are tried one by one"
        )

    def _quarantine_item(self, task: Task, item: str, error: WorkerLostError) -> None:
        name, facts = task.describe_item(item)
        path = self.quarantine.note(name, {**facts, "why": str(error)})
        self.on_warning(
            f"{task.name}: {item!r} killed its worker each time that it was tried alone; it is recorded as "
            f"failed and the round goes on ({path.name}.reason.json)"
        )
