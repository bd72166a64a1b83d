"""The training worker: reads the round's example files, runs one update, answers with what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from policies.base.component import Component, create
from policies.base.errors import TrainingError, boundary, explain
from policies.examples.kind import Example
from policies.objectives.loss import Loss
from policies.storage.artifacts import read_marker, read_records
from policies.storage.policy_store import check_companions
from workers.cluster.compute_threads import set_threads
from workers.training.distributed.process_group import listen, own_address
from workers.training.engine import (
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
    UpdateOutcome,
)
from workers.training.update import run_update

Setup = tuple[Component.Config, Component.Config, TrainingOptions]
"""Training engine, loss and options of one stage of a run."""


class TrainWorker:
    """One training engine per stage for the whole run; their imports stay warm between rounds."""

    def __init__(self, setups: Sequence[Setup], adapter: AdapterSettings | None) -> None:
        set_threads()  # all cores: samplers idle while the trainer works
        self.engines: list[TrainingEngine] = []
        for engine, loss, options in setups:
            with boundary(TrainingError, f"training engine {engine.type!r} could not start"):
                self.engines.append(
                    create(engine, loss=create(loss), options=options, adapter=adapter)
                )

    def address(self) -> str:
        """Under which address other machines reach this worker."""
        return own_address()

    def open_rendezvous(self, address: str) -> int:
        """Listen on a free port of `address` for the workers of the next update; returns the port. For rank 0."""
        return listen(address)

    def update(self, job: UpdateJob, example_paths: Sequence[str]) -> UpdateOutcome:
        """Train on the examples of all files, in order, of some only the rows that `job` names.

        New weights lie in `job.output_dir` afterwards.
        """
        for version in (job.policy, *job.reference_versions):
            check_companions(version)  # the driver has read the weights right before
        engine = self.engines[job.stage]
        examples: list[Example] = []
        for path in example_paths:
            found, rows = _read(Path(path), engine.loss), job.example_rows.get(path)
            examples += found if rows is None else [found[row] for row in rows]
        return run_update(engine, job, examples)


def _read(path: Path, loss: Loss) -> list[Example]:
    marker = read_marker(path)
    if marker is not None and marker.kind not in ("", loss.kind_name):
        raise TrainingError(
            explain(
                f"the loss {loss.config.type!r} trains on {loss.kind_name} examples",
                value=marker.kind,
                where=str(path),
                fix="choose a preference builder that makes what the loss reads",
            )
        )
    return read_records(path, loss.kind)
