"""Shards through stages, streaming: a shard is verified as soon as it is sampled, without barriers.

*Consumes* shards whose prompts are on disk. *Produces* one finished file per shard and stage, and the
summaries of all stages in shard order; payload never crosses the driver. *On failure*: a lost worker's
shard is submitted again, a bounded number of times; any other error of a worker stops the round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.run_folder import ShardPaths
from orchestrator.stopping import StopRequest
from orchestrator.waiting import wait_for_any
from policies.errors import WorkerLostError
from policies.shards import read_marker
from workers.cluster import Call, Cluster, Group

logger = logging.getLogger(__name__)

Summary = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One step of every shard."""

    name: str
    group: Group
    method: str
    arguments: Callable[[ShardPaths], tuple[Any, ...]]
    outputs: Callable[[ShardPaths], list[Path]]
    """Files that this stage writes; all their markers present means done."""
    after: tuple[str, ...] = ()
    """Stages that must have finished for the same shard."""
    starts_shard: bool = False
    """The first stage: held back so that only the shards in hand are begun, and a stop request ends soon."""


@dataclass
class _Progress:
    shard: ShardPaths
    done: dict[str, Summary] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    attempts: int = 0


@dataclass
class Pipeline:
    """Runs stages over shards, bounded and back-pressured."""

    cluster: Cluster
    stages: Sequence[Stage]
    stop: StopRequest
    max_in_flight: int
    max_attempts: int
    timeout_seconds: float
    on_stage: Callable[[ShardPaths, str, Summary], None] = lambda shard, stage, summary: None

    def run(self, shards: Sequence[ShardPaths]) -> dict[str, list[Summary]]:
        """Bring every shard through every stage; returns summaries by stage, in shard order."""
        progress = [_Progress(shard) for shard in shards]
        for each in progress:
            self._recall(each)
        calls: dict[Call, tuple[_Progress, Stage]] = {}
        while any(len(p.done) < len(self.stages) for p in progress):
            if not self.stop.requested:
                self._submit_what_can_start(progress, calls)
            else:
                self._submit_what_can_start([p for p in progress if p.done or p.running], calls)
            if not calls:
                self.stop.check()
            for call in wait_for_any(self.cluster, list(calls), self.timeout_seconds):
                self._take(call, *calls.pop(call))
        return {s.name: [p.done[s.name] for p in progress] for s in self.stages}

    def _recall(self, progress: _Progress) -> None:
        """Stages whose files are finished already are not run again."""
        for stage in self.stages:
            markers = [read_marker(path) for path in stage.outputs(progress.shard)]
            if (
                markers
                and all(m is not None for m in markers)
                and set(stage.after) <= set(progress.done)
            ):
                first = markers[0]
                assert first is not None
                progress.done[stage.name] = dict(first.summary)

    def _submit_what_can_start(
        self, progress: Sequence[_Progress], calls: dict[Call, tuple[_Progress, Stage]]
    ) -> None:
        open_shards = sum(
            1 for p in progress if p.running or (p.done and len(p.done) < len(self.stages))
        )
        for each in progress:
            for stage in self.stages:
                if (
                    stage.name in each.done
                    or stage.name in each.running
                    or not set(stage.after) <= set(each.done)
                ):
                    continue
                if stage.starts_shard and not each.done:
                    sampling = sum(1 for _, s in calls.values() if s is stage)
                    if open_shards >= self.max_in_flight or sampling > stage.group.size:
                        continue
                    open_shards += 1
                call = stage.group.submit(
                    stage.method,
                    *stage.arguments(each.shard),
                    label=f"shard-{each.shard.index:04d}",
                )
                each.running.add(stage.name)
                calls[call] = (each, stage)

    def _take(self, call: Call, progress: _Progress, stage: Stage) -> None:
        progress.running.discard(stage.name)
        try:
            summary: Summary = self.cluster.result(call, self.timeout_seconds)
        except WorkerLostError as error:
            progress.attempts += 1
            if progress.attempts >= self.max_attempts:
                raise WorkerLostError(
                    f"{error}. Shard {progress.shard.index} lost its worker {progress.attempts} "
                    "times (cluster.max_attempts). Fix: look at the worker's log for "
                    "the cause (memory?), then `pawl resume`"
                ) from error
            logger.warning(
                "%s; the shard is submitted again (attempt %d)", error, progress.attempts + 1
            )
            return
        progress.done[stage.name] = summary
        self.on_stage(progress.shard, stage.name, summary)
