"""The training worker: reads the round's example files, runs one update, answers with what happened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from policies.component import Component, create
from policies.errors import TrainingError, boundary
from policies.examples import (
    Example,
    ExampleKind,
    PreferencePair,
    SupervisedExample,
    UnpairedExample,
)
from policies.loss import Loss
from policies.records import Record
from policies.shards import read_records
from workers.training.engine import (
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
    UpdateOutcome,
)

RECORD_OF: dict[ExampleKind, type[Record]] = {
    "pair": PreferencePair,
    "unpaired": UnpairedExample,
    "supervised": SupervisedExample,
}
"""The record type of each kind of example, for reading example files."""


class TrainWorker:
    """One training engine for the whole run; its imports stay warm between rounds."""

    def __init__(
        self,
        engine: Component.Config,
        loss: Component.Config,
        options: TrainingOptions,
        adapter: AdapterSettings | None,
    ) -> None:
        # Ray limits threads to an actor's logical CPUs; samplers idle while the trainer works, so it takes all.
        os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        built_loss: Loss = create(loss)
        with boundary(TrainingError, f"training engine {engine.type!r} could not start"):
            self.engine: TrainingEngine = create(
                engine, loss=built_loss, options=options, adapter=adapter
            )
        self.kind: ExampleKind = built_loss.kind

    def update(self, job: UpdateJob, example_paths: Sequence[str]) -> UpdateOutcome:
        """Train on the examples of all files, in order; new weights lie in `job.output_dir` afterwards."""
        kind = RECORD_OF[self.kind]
        examples = [record for path in example_paths for record in read_records(Path(path), kind)]
        with boundary(TrainingError, f"the update of round {job.round} failed"):
            return self.engine.update(job, cast("list[Example]", examples))
