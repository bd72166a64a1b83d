"""The TRL engine, but each worker of an update notes where it runs: for tests of placement."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from policies.examples.kinds import Example
from workers.training.engine import UpdateJob, UpdateOutcome
from workers.training.engines.trl import TRLEngine


class NotingTrainer(TRLEngine):
    """Writes `<rank>.json` with the node and the process."""

    class Config(TRLEngine.Config):
        """Settings of the notes."""

        notes: str
        """Folder for them."""

    config: Config

    def update(self, job: UpdateJob, examples: Sequence[Example]) -> UpdateOutcome:
        """Make the update, then note who took part in it."""
        import ray

        outcome = super().update(job, examples)
        rank = 0 if job.process_group is None else job.process_group.rank
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        note = {"node": node, "pid": os.getpid()}
        (Path(self.config.notes) / f"{rank}.json").write_text(json.dumps(note))
        return outcome
