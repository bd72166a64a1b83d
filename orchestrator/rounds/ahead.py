"""Sampling the next round while an update runs (`rollout.ahead`): the same tasks, begun one round earlier.

*Consumes* the next round's prompts, which the draw makes from the seed alone, and the version that the update starts
from. *Produces* that round's trajectories, with the markers that its collect phase recalls. *On failure*: as there.
"""

from __future__ import annotations

from orchestrator.flow.scheduler import Scheduler
from orchestrator.flow.shard_task import ShardTask, shard_tasks
from orchestrator.flow.waiting import Patience
from orchestrator.rounds.collecting import sampling_work
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.drawing import draw
from orchestrator.runs.events import EventKind


def tasks_ahead(scope: RoundScope) -> list[ShardTask]:
    """Tasks that sample the round after this one; none without `rollout.ahead`, and in the last round."""
    run, following = scope.run, scope.index + 1
    if not run.config.rollout.ahead or following > run.config.rounds:
        return []
    # Its own version is not published yet: what samples it is what this round's update starts from.
    ahead = RoundScope(run, following, scope.policy)
    shards = [ahead.folder.shard(i) for i in range(draw(ahead).num_shards)]
    patience = Patience(run.config.cluster.shard_timeout_seconds)
    return shard_tasks(sampling_work(ahead), shards, patience)


def tell_speed(scope: RoundScope, flow: Scheduler, tasks: list[ShardTask]) -> None:
    """Tell how fast the next round was sampled, where it was not finished already."""
    clock = flow.clocks.get("rollout")
    tokens = sum(flow.summary_of(t.key).get("tokens", 0) for t in tasks if t.name == "rollout")
    if clock is None or not tokens:
        return
    scope.run.events.emit(
        EventKind.THROUGHPUT,
        round_index=scope.index + 1,
        phase="collect",
        stages={"rollout": {"tokens": tokens, "seconds": round(clock.seconds, 3)}},
    )
