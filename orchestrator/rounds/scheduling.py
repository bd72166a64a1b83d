"""The scheduler of a round: with the run's cluster, fence, limits and quarantine."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.flow.scheduler import Scheduler
from orchestrator.flow.task import Summary, Task
from orchestrator.rounds.context import RoundScope


def scheduler(
    scope: RoundScope, on_task: Callable[[Task, Summary], None] = lambda task, summary: None
) -> Scheduler:
    """Return what runs the tasks of this round."""
    run, changed = scope.run, scope.run.plug_ins.changed_in
    # The round after the change may have been sampled before it.
    affected = changed is not None and changed <= scope.index <= changed + run.config.rollout.ahead
    return Scheduler(
        cluster=run.cluster,
        stop=run.stop,
        max_in_flight=run.config.cluster.max_shards_in_flight,
        max_attempts=run.config.cluster.max_attempts,
        quarantine=run.quarantine,
        epoch=run.fence.epoch,
        guard=run.fence,
        on_task=on_task,
        plug_ins_changed=affected,
        on_warning=lambda message: run.events.warn(message, round_index=scope.index),
    )
