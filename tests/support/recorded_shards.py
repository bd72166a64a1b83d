"""Three pieces of work on three shards, by a worker that remembers its calls and fails as it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.flow.scheduler import Scheduler
from orchestrator.flow.shard_task import ShardWork, key_of, shard_tasks
from orchestrator.flow.stopping import StopRequest
from orchestrator.flow.task import Summary
from orchestrator.flow.waiting import Patience
from orchestrator.runs.folder import RoundFolder, RunFolder, ShardPaths
from orchestrator.runs.quarantine import Quarantine
from policies.base.records import Prompt
from policies.storage.artifacts import Written, write_draft
from workers.cluster.inline import InlineCluster
from workers.cluster.item_filter import ItemFilter
from workers.cluster.seam import GroupSpec


class Recorder:
    """A worker that writes a shard file, remembers its calls, and fails as it is told to."""

    def __init__(self, calls: list[str], fail: Callable[[str], None], lies: int = 0) -> None:
        self.calls = calls
        self.fail = fail
        self.lies = lies

    def work(self, name: str, path: str, item_filter: ItemFilter) -> Written:
        part = "".join(f" only {i}" for i in item_filter.only)
        part += " skip " + " ".join(item_filter.skip) if item_filter.skip else ""
        self.calls.append(f"{name}:{Path(path).stem[-1]}{part}")
        self.fail(self.calls[-1])
        draft = write_draft(Path(path), Prompt, [])
        if self.lies:
            self.lies -= 1
            draft = draft.model_copy(update={"sha256": "0" * 64})
        return Written(files=(draft,), summary={"n": 1})


@dataclass
class Pipeline:
    """Work on shards."""

    scheduler: Scheduler
    work: list[ShardWork]

    def run(self, shards: list[ShardPaths]) -> dict[str, list[Summary]]:
        """Return summaries by work, in shard order."""
        found = self.scheduler.run(shard_tasks(self.work, shards, Patience(5)))
        return {w.name: [found[key_of(shard, w.name)] for shard in shards] for w in self.work}


def build(
    tmp_path: Path,
    calls: list[str],
    fail: Callable[[str], None] = lambda call: None,
    items: Callable[[ShardPaths], list[str]] | None = None,
    lies: int = 0,
    **settings: Any,
) -> tuple[Pipeline, list[ShardPaths]]:
    cluster = InlineCluster()
    told = {"calls": calls, "fail": fail, "lies": lies}
    group = cluster.start_group(GroupSpec("w", Recorder, told))

    def stage(name: str, kind: Any, after: tuple[str, ...] = (), reads: Any = ()) -> ShardWork:
        return ShardWork(
            name=name,
            group=group,
            method="work",
            arguments=lambda s, attempt, item_filter: (name, str(attempt.of(kind)), item_filter),
            writes=(kind,),
            reads=reads,
            input_digests={"settings": "s"},
            after=after,
            items=items,
        )

    stages = [
        stage("a", "trajectories"),
        stage("b", "verdicts", ("a",), ("trajectories",)),
        stage("c", "examples", ("b",), ("verdicts",)),
    ]
    arguments: dict[str, Any] = {
        "stop": StopRequest(),
        "max_in_flight": 2,
        "max_attempts": 3,
        "quarantine": Quarantine(RunFolder(tmp_path)),
        "epoch": 1,
        "guard": lambda: None,
    }
    pipeline = Pipeline(Scheduler(cluster=cluster, **(arguments | settings)), stages)
    folder = RoundFolder(tmp_path)
    return pipeline, [folder.shard(i) for i in range(3)]
