"""Sampling the next round while an update runs (`rollout.ahead`): the same tasks, begun one round earlier.

*Consumes* the next round's prompts, which the draw makes from the seed alone, and the version that the update starts
from. *Produces* that round's trajectories, with the markers that its collect phase recalls. *On failure*: what fails is
put off with a warning; the update goes on, and the next collect phase meets the error in its own name.
"""

from __future__ import annotations

from orchestrator.flow.scheduler import Scheduler
from orchestrator.flow.shard_task import ShardTask, shard_tasks
from orchestrator.flow.task import Summary, Task
from orchestrator.flow.waiting import Patience
from orchestrator.rounds.collecting import sampling_work
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.drawing import draw, repair_prompts
from orchestrator.runs.events import EventKind


class Ahead:
    """The tasks that sample the round after this one, and how fast they were."""

    def __init__(self, scope: RoundScope) -> None:
        self._scope = scope
        self._tokens = 0
        self.tasks = _tasks(scope)

    def finished(self, task: Task, summary: Summary) -> None:
        """Take note of a task that was done now."""
        if isinstance(task, ShardTask) and task.name == "rollout":
            self._tokens += summary.get("tokens", 0)

    def tell(self, flow: Scheduler) -> None:
        """Tell how fast the next round was sampled; what was finished before says nothing of that."""
        clock = flow.clocks.get("rollout")
        if clock is None or not self._tokens:
            return
        self._scope.run.events.emit(
            EventKind.THROUGHPUT,
            round_index=self._scope.index + 1,
            phase="collect",
            stages={"rollout": {"tokens": self._tokens, "seconds": round(clock.seconds, 3)}},
        )


def _tasks(scope: RoundScope) -> list[ShardTask]:
    """None without `rollout.ahead`, and in the last round."""
    run, following = scope.run, scope.index + 1
    if not run.config.rollout.ahead or following > run.config.rounds:
        return []
    # Its own version is not published yet: what samples it is what this round's update starts from.
    ahead = RoundScope(run, following, scope.policy)
    number = draw(ahead).num_shards
    repair_prompts(ahead)
    shards = [ahead.folder.shard(i) for i in range(number)]
    patience = Patience(run.config.cluster.shard_timeout_seconds)
    return shard_tasks(sampling_work(ahead), shards, patience, may_wait=True)
