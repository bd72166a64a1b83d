"""The fake training engine, but it dies where it is told to: for tests of what survives a trainer's death."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Literal, cast

from policies.base.errors import WorkerLostError, WorkerMemoryError
from workers.training.engine import StepBatch
from workers.training.engines.fake import FakeTrainingEngine
from workers.training.step_loss import StepLoss


class CrashingTrainer(FakeTrainingEngine):
    """Dies in the steps of `die_at`, one death after the other, then works."""

    class Config(FakeTrainingEngine.Config):
        """Settings of the deaths."""

        notes: str
        """Folder in which each death and each step that was made is noted."""
        die_at: tuple[int, ...] = ()
        """Steps, in order of the deaths."""
        how: Literal["kill", "lost", "memory", "driver"] = "lost"
        """`kill` ends the process; the others say what an inline cluster would see."""
        rank: int = 0
        """Which of several workers dies."""

    def forward_backward(self, batch: StepBatch, loss: StepLoss) -> dict[str, float]:
        step, rank = batch.number, self.group.rank
        config = cast(CrashingTrainer.Config, self.config)
        notes = Path(config.notes)
        deaths = len(list(notes.glob("death-*")))
        if (
            rank == config.rank
            and deaths < len(config.die_at)
            and step + 1 == config.die_at[deaths]
        ):
            (notes / f"death-{deaths}").touch()
            if config.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if config.how == "driver":
                raise KeyboardInterrupt("the end of the driver, whose workers live inside it")
            if config.how == "memory":
                raise WorkerMemoryError("train 0: its node ran out of memory")
            raise WorkerLostError("train 0: the worker died")
        with (notes / f"steps-{rank}").open("a") as handle:
            handle.write(f"{step + 1}\n")
        return super().forward_backward(batch, loss)
