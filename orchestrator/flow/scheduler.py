"""Shards through tasks, streaming: a shard is verified as soon as it is sampled, without barriers.

*Consumes* shards whose prompts are on disk. *Produces* one finished file per shard, task and kind, and the
summaries of all tasks in shard order; payload never crosses the driver. Workers write drafts on attempt paths; this
is the one place that commits them. *On failure*: a lost worker's shard is submitted again, a bounded number of times,
then its items are tried one by one and those that kill it put into quarantine; a damaged file is put into quarantine
and made again; any other error of a worker stops the round.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.flow.fingerprint import PLUG_INS
from orchestrator.flow.poison_items import PoisonSearch
from orchestrator.flow.stopping import StopRequest
from orchestrator.flow.waiting import wait_for_any
from orchestrator.runs.folder import ShardKind, ShardPaths
from orchestrator.runs.quarantine import Quarantine
from policies.base.errors import ArtifactError, CallNotStartedError, ResumeError, WorkerLostError
from policies.storage.artifacts import (
    SHARD_SCHEMA,
    Marker,
    Written,
    commit,
    discard,
    find_damage,
    read_marker,
)
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.cluster.seam import Call, Cluster, Files, Group

logger = logging.getLogger(__name__)

Summary = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One piece of work on every shard."""

    name: str
    group: Group
    method: str
    arguments: Callable[[ShardPaths, ShardPaths, ItemFilter], tuple[Any, ...]]
    """What the method is called with: the shard's finished files, where drafts go, which items to work on."""
    writes: tuple[ShardKind, ...]
    """Kinds of files that this task makes, in the order in which the worker answers; the first has the summary."""
    reads: tuple[ShardKind, ...] = ()
    """Kinds of files that they are made from, besides the prompts."""
    input_digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of what else they are made from: policies, settings, code."""
    after: tuple[str, ...] = ()
    """Tasks that must have finished for the same shard."""
    starts_shard: bool = False
    """The first task: held back so that only the shards in hand are begun, and a stop request ends soon."""
    folders: tuple[str, ...] = ()
    """Folders that its worker reads besides files of the shard: policies."""
    items: Callable[[ShardPaths], list[str]] | None = None
    """Ids of what to try one by one when the shard kills its worker; None where that cannot be done."""

    def files(self, shard: ShardPaths, attempt: ShardPaths) -> Files:
        """Return what a call reads and writes, for nodes that do not see the run folder."""
        inputs = [shard.prompts, *(shard.of(kind) for kind in self.reads)]
        return Files(
            reads=(*self.folders, *map(str, inputs)),
            writes=tuple(str(attempt.of(kind)) for kind in self.writes),
        )


@dataclass
class _Progress:
    shard: ShardPaths
    done: dict[str, Summary] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)
    """Content digest of each kind of file that is finished."""
    attempts: Counter[str] = field(default_factory=Counter)
    """Submissions by task; each has its own path."""
    deaths: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    searches: dict[str, PoisonSearch] = field(default_factory=dict)


@dataclass
class TaskWork:
    """Tokens of the trajectories that a task worked on, and the seconds in which it had any call in hand."""

    tokens: int = 0
    seconds: float = 0.0
    _calls: int = 0
    _since: float = 0.0

    def begin(self) -> None:
        """A call was submitted."""
        if not self._calls:
            self._since = time.monotonic()
        self._calls += 1

    def end(self) -> None:
        """A call came back."""
        self._calls -= 1
        if not self._calls:
            self.seconds += time.monotonic() - self._since


@dataclass(frozen=True)
class _Submission:
    progress: _Progress
    task: Task
    inputs: dict[str, str]
    is_probe: bool


@dataclass
class Pipeline:
    """Runs tasks over shards, bounded and back-pressured."""

    cluster: Cluster
    tasks: Sequence[Task]
    stop: StopRequest
    max_in_flight: int
    max_attempts: int
    timeout_seconds: float
    quarantine: Quarantine
    epoch: int
    guard: Callable[[], None]
    """Raises when this driver may not commit any more."""
    on_task: Callable[[ShardPaths, str, Summary], None] = lambda shard, task, summary: None
    on_warning: Callable[[str], None] = logger.warning
    plug_ins_changed: bool = False
    """A change of plug-ins was accepted in this round: what was made with the old ones is made again."""
    work: dict[str, TaskWork] = field(default_factory=dict)
    """What each task did while this object ran it, with its clock."""

    def run(self, shards: Sequence[ShardPaths]) -> dict[str, list[Summary]]:
        """Bring every shard through every task; returns summaries by task, in shard order.

        Raises:
            ResumeError: a finished file was made from other prompts, policies, settings or code than now.
            WorkerLostError: a shard kills its worker each time and no single item can be blamed.
        """
        progress = [_Progress(shard) for shard in shards]
        for each in progress:
            self._recall(each)
        calls: dict[Call, _Submission] = {}
        while any(len(p.done) < len(self.tasks) for p in progress):
            if not self.stop.requested:
                self._submit_what_can_start(progress, calls)
            else:
                self._submit_what_can_start([p for p in progress if p.done or p.running], calls)
            if not calls:
                self.stop.check()
            for call in wait_for_any(self.cluster, list(calls), self.timeout_seconds):
                self._take(call, calls.pop(call))
        return {s.name: [p.done[s.name] for p in progress] for s in self.tasks}

    # --- what is finished already

    def _recall(self, progress: _Progress) -> None:
        """Stages whose files are finished, whole, and made from what they would be made from now are not run again."""
        prompts = read_marker(progress.shard.prompts)
        progress.digests["prompts"] = "" if prompts is None else prompts.content_digest
        for task in self.tasks:
            if not set(task.after) <= set(progress.done):
                self._forget(progress, task)
                continue
            markers = self._finished(progress, task)
            if markers is not None:
                self._remember(progress, task, markers)

    def _remember(self, progress: _Progress, task: Task, markers: Sequence[Marker]) -> None:
        for kind, marker in zip(task.writes, markers, strict=True):
            progress.digests[kind] = marker.content_digest
        progress.done[task.name] = dict(markers[0].summary)

    def _forget(self, progress: _Progress, task: Task) -> None:
        """Take back a task whose input is made again: its files do not count any more."""
        progress.done.pop(task.name, None)
        for kind in task.writes:
            progress.digests.pop(kind, None)
            discard(progress.shard.of(kind), self.guard)

    def _finished(self, progress: _Progress, task: Task) -> list[Marker] | None:
        if self._set_damaged_aside(progress, task):
            return None
        markers = [read_marker(progress.shard.of(kind)) for kind in task.writes]
        found = [marker for marker in markers if marker is not None and marker.inputs]
        if len(found) < len(
            markers
        ):  # unfinished, or by an older Pawl that did not say what they were made from
            return None
        expected = self._inputs(progress, task)
        for kind, marker in zip(task.writes, found, strict=True):
            differing = sorted(
                name
                for name in marker.inputs.keys() | expected.keys()
                if marker.inputs.get(name) != expected.get(name)
            )
            if differing == [PLUG_INS] and self.plug_ins_changed:
                return (
                    None  # the user took the change: all of the shard is made with what holds now
                )
            if differing:
                raise ResumeError(
                    f"{progress.shard.of(kind)} was made from other {', '.join(differing)} than the run has now. "
                    f"Fix: restore {' and '.join(differing)}; or delete the files of this round that are not "
                    "finished, and they are made again; or start a new run"
                )
        return found

    def _set_damaged_aside(self, progress: _Progress, task: Task) -> bool:
        """Tell whether a file of the task that ought to be finished was damaged; it is in quarantine then."""
        damaged = False
        for kind in task.writes:
            path = progress.shard.of(kind)
            why = find_damage(path)
            if why is None or why == "was never finished":
                continue
            self.quarantine.set_aside(path, why)
            self.on_warning(f"{path}: {why}; it is in quarantine and made again")
            damaged = True
        return damaged

    def _inputs(self, progress: _Progress, task: Task) -> dict[str, str]:
        """Digest of everything that the task's files are made from, by name."""
        upstream = {kind: progress.digests.get(kind, "") for kind in ("prompts", *task.reads)}
        return {**upstream, **task.input_digests, "schema": SHARD_SCHEMA}

    # --- what is to be done

    def _submit_what_can_start(
        self, progress: Sequence[_Progress], calls: dict[Call, _Submission]
    ) -> None:
        open_shards = sum(
            1 for p in progress if p.running or (p.done and len(p.done) < len(self.tasks))
        )
        for each in progress:
            for task in self.tasks:
                if (
                    task.name in each.done
                    or task.name in each.running
                    or not set(task.after) <= set(each.done)
                ):
                    continue
                if task.starts_shard and not each.done:
                    sampling = sum(1 for s in calls.values() if s.task is task)
                    if open_shards >= self.max_in_flight or sampling > task.group.size:
                        continue
                    open_shards += 1
                call, submission = self._submit(each, task)
                calls[call] = submission

    def _submit(self, progress: _Progress, task: Task) -> tuple[Call, _Submission]:
        search = progress.searches.get(task.name)
        item_filter = WHOLE if search is None else search.item_filter()
        progress.attempts[task.name] += 1
        attempt = progress.shard.attempt(self.epoch, progress.attempts[task.name])
        call = task.group.submit(
            task.method,
            *task.arguments(progress.shard, attempt, item_filter),
            label=f"shard-{progress.shard.index:04d}",
            files=task.files(progress.shard, attempt),
        )
        progress.running.add(task.name)
        self.work.setdefault(task.name, TaskWork()).begin()
        inputs = self._inputs(progress, task)
        return call, _Submission(progress, task, inputs, is_probe=bool(item_filter.only))

    def _take(self, call: Call, submission: _Submission) -> None:
        progress, task = submission.progress, submission.task
        progress.running.discard(task.name)
        self.work[task.name].end()
        try:
            written: Written = self.cluster.result(call, self.timeout_seconds)
        except CallNotStartedError:
            return  # it stood behind what killed the worker: submitted again, and not to blame
        except WorkerLostError as error:
            self._lost(progress, task, error)
            return
        except ArtifactError:
            if not self._repair(progress, task):
                raise
            return
        if submission.inputs != self._inputs(progress, task):
            return  # its input was made again meanwhile
        if submission.is_probe:
            progress.searches[task.name].survived()
            return
        try:
            self._commit(submission, written)
        except ArtifactError as error:  # the draft is not what its worker reported
            progress.repaired[task.name] += 1
            if progress.repaired[task.name] >= self.max_attempts:
                raise
            self.on_warning(f"{error}; it is made again")
            return
        self.work[task.name].tokens += progress.done.get("rollout", {}).get("tokens", 0)
        self.on_task(progress.shard, task.name, progress.done[task.name])

    def _commit(self, submission: _Submission, written: Written) -> None:
        progress, task = submission.progress, submission.task
        markers = [
            commit(
                draft,
                progress.shard.of(kind),
                inputs=submission.inputs,
                summary=written.summary if kind == task.writes[0] else None,
                guard=self.guard,
            )
            for kind, draft in zip(task.writes, written.files, strict=True)
        ]
        self._remember(progress, task, markers)

    # --- what went wrong

    def _repair(self, progress: _Progress, task: Task) -> bool:
        """Put damaged input of a task into quarantine, so that it is made again; False when all of it is whole."""
        sources = [s for s in self.tasks if set(s.writes) & set(task.reads)]
        damaged = [s for s in sources if self._set_damaged_aside(progress, s)]
        progress.repaired[task.name] += 1
        if not damaged or progress.repaired[task.name] >= self.max_attempts:
            return False
        again = {s.name for s in damaged}
        for each in self.tasks:  # in order, so that what depends on what depends is found too
            if each.name in again or again & set(each.after):
                again.add(each.name)
                self._forget(progress, each)
        return True

    def _lost(self, progress: _Progress, task: Task, error: WorkerLostError) -> None:
        """A worker died over the shard: try again, then one by one, then give up."""
        shard, search = progress.shard, progress.searches.get(task.name)
        if search is not None and search.is_open:
            item = search.died()
            if item is not None:
                self._quarantine_item(shard, task, item, error)
            return
        progress.deaths[task.name] += 1
        deaths = progress.deaths[task.name]
        if deaths < self.max_attempts:
            logger.warning("%s; the shard is submitted again (attempt %d)", error, deaths + 1)
            return
        if search is None and task.items is not None:
            progress.searches[task.name] = PoisonSearch(task.items(shard))
            self.on_warning(
                f"{error}. Shard {shard.index} lost its worker {deaths} times at {task.name}: "
                "its items are tried one by one"
            )
            return
        raise WorkerLostError(
            f"{error}. Shard {shard.index} lost its worker {deaths} "
            "times (cluster.max_attempts). Fix: look at the worker's log for "
            "the cause (memory?), then `pawl resume`"
        ) from error

    def _quarantine_item(
        self, shard: ShardPaths, task: Task, item: str, error: WorkerLostError
    ) -> None:
        place = "-".join(shard.directory.parts[-2:])
        path = self.quarantine.note(
            f"{place}-{task.name}-shard-{shard.index:04d}-{self._number(task, shard, item):04d}",
            {"item": item, "stage": task.name, "shard": shard.index, "why": str(error)},
        )
        self.on_warning(
            f"{task.name}: {item!r} killed its worker each time that it was tried alone; it is recorded as "
            f"failed and the round goes on ({path.name}.reason.json)"
        )

    def _number(self, task: Task, shard: ShardPaths, item: str) -> int:
        """Place of an item in its shard: ids are other people's texts and make no file names."""
        return task.items(shard).index(item) if task.items is not None else 0
