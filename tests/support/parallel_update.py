"""One of several training workers: makes the updates that a test asks for, together with the others.

Usage: parallel_update.py FOLDER RANK WORLD_SIZE; beside FOLDER lie `model`, the policy, and `other`, the reference.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from pathlib import Path
from typing import Any

from policies.objectives.reference import ReferencePart, ReferencePlan
from tests.support.cut_updates import CutOffError, cut_at
from tests.support.training_cases import (
    examples_of,
    make_engine,
    make_job,
    make_loss,
    turn_singles,
    version,
)
from workers.training.checkpoints.store import newest_step
from workers.training.distributed.process_group import LOOPBACK, listen
from workers.training.engine import AdapterSettings, ProcessGroup, UpdateJob
from workers.training.update import run_update

OPTIONS: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 2, "group_timeout_seconds": 120.0}
SHARDED = {"sharding": "fsdp", "workers": 2}
LORA = AdapterSettings(rank=2, alpha=4.0)
CASES: dict[str, tuple[str, str, AdapterSettings | None, dict[str, Any]]] = {
    # 10 pairs in steps of 3 and 4, in microbatches of 1 and 2: some workers get no row of some.
    "dpo": ("dpo", "pair", None, {"micro_batch_size": 2, "checkpoint_steps": 2}),
    "dpo_adapter": ("dpo", "pair", LORA, {}),
    "dpo_sharded": ("dpo", "pair", None, {**SHARDED, "micro_batch_size": 2, "checkpoint_steps": 2}),
    "dpo_adapter_sharded": ("dpo", "pair", LORA, SHARDED),
    "dpo_torch": ("dpo", "pair", None, {"micro_batch_size": 2, "checkpoint_steps": 2}),
    "kto": ("kto", "unpaired", None, {}),
    "kto_torch": ("kto", "unpaired", LORA, {}),
    "step_kto": ("step_kto", "steps", None, {"micro_batch_size": 2}),
    "sft": ("sft", "supervised", None, {}),
}


def update(name: str, folder: Path, place: ProcessGroup | None, **changes: Any) -> UpdateJob:
    """Make the update of one case against a reference that is another model, in `folder/<name>`."""
    loss, kind, adapter, options = CASES[name]
    own = folder / name
    own.mkdir(exist_ok=True, parents=True)
    root = folder.parent
    reference = ReferencePlan(parts=(ReferencePart(version=1, weight=1.0),))
    job = make_job(
        version(root / "model"),
        own,
        reference=reference,
        reference_versions=(version(root / "other", number=1),),
        process_group=place,
        **changes,
    )
    examples = turn_singles() if kind == "steps" else examples_of(kind)
    engine = "torch" if name.endswith("_torch") else "trl"
    made = make_engine(engine, make_loss(loss), adapter, **{**OPTIONS, **options})
    run_update(made, job, examples)
    return job


def all_cases(folder: Path, *, rank: int, world_size: int) -> None:
    """Make the updates of all cases as one of the workers; those with checkpoints are cut off once on the way."""

    def meet(name: str) -> ProcessGroup:
        """Rank 0 tells the others its port by a file."""
        meeting = folder / f"{name}.port"
        if rank == 0:
            meeting.with_suffix(".tmp").write_text(str(listen(LOOPBACK)))
            meeting.with_suffix(".tmp").rename(meeting)
        deadline = time.monotonic() + 240
        while not meeting.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return ProcessGroup(
            address=LOOPBACK,
            port=int(meeting.read_text()),
            rank=rank,
            world_size=world_size,
            local_world_size=world_size,
        )

    for name, case in CASES.items():
        gc.freeze()  # each update collects garbage, and would walk through all that is imported
        checkpoints = str(folder / name / "checkpoints")
        if "checkpoint_steps" in case[-1]:
            with cut_at(4), contextlib.suppress(CutOffError):
                update(name, folder, meet(f"{name}-cut"), checkpoint_dir=checkpoints)
            assert newest_step(Path(checkpoints)) == 2, "the fault must come after a checkpoint"
            with cut_at(2):  # a step behind the checkpoint is not made again
                update(name, folder, meet(name), checkpoint_dir=checkpoints)
        else:
            update(name, folder, meet(name))


if __name__ == "__main__":
    all_cases(Path(sys.argv[1]), rank=int(sys.argv[2]), world_size=int(sys.argv[3]))
