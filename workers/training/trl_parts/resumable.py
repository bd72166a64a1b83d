"""Makes an update's steps survive: a start in the middle, checkpoints on the way, and no step that is not finite.

A mixin for the trainers of transformers. The batches and the randomness of a step follow from its number and the
update's seed, so an update that was cut off goes on with the very steps that it would have made. No trl in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from policies.base.seeds import derive_seed
from workers.cluster.heartbeat import report_progress
from workers.training.batches.plan import MicroBatch
from workers.training.checkpoints.trained_state import MOMENTS, TrainedState, trained_weights
from workers.training.distributed.process_group import WorkerGroup
from workers.training.job import TrainingOptions
from workers.training.schedule import rate_factor
from workers.training.step_log import StepLog
from workers.training.step_loss import Objective
from workers.training.update import Progress


@dataclass(frozen=True)
class TrainerParts:
    """The parts that one update hands to its trainer."""

    objective: Objective
    options: TrainingOptions
    batches: Sequence[MicroBatch]
    """All microbatches of the update that are this worker's, in order."""
    progress: Progress
    accumulation: int
    custom: bool
    """Compute with the loss itself instead of TRL's spelling of it."""
    optimizer_state: str | None
    seed: int

    @property
    def num_steps(self) -> int:
        return len(self.batches) // self.accumulation

    @property
    def group(self) -> WorkerGroup:
        return self.objective.group

    @property
    def log(self) -> StepLog:
        return self.progress.log


class ResumableSteps:
    """Its methods replace hooks of transformers' Trainer; a parity test pins their names."""

    pawl: ClassVar[TrainerParts]

    def get_train_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        parts = self.pawl
        done = parts.progress.done * parts.accumulation
        batches, collate = cast(Any, parts.batches[done:]), cast(Any, parts.objective.collate)
        return DataLoader(batches, batch_size=None, shuffle=False, collate_fn=collate)

    def create_optimizer(self, model: Any = None) -> Any:
        from workers.training.checkpoints.optimizer_state import load_optimizer_state

        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        parts = self.pawl
        if parts.progress.start is not None:
            load_optimizer_state(optimizer, parts.progress.start.path / MOMENTS)
        elif parts.optimizer_state is not None:
            load_optimizer_state(optimizer, Path(parts.optimizer_state))
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A schedule over all steps of the update, however many of them are left."""
        from torch.optim.lr_scheduler import LambdaLR

        trainer, parts = cast(Any, self), self.pawl
        scheduler = LambdaLR(
            trainer.optimizer if optimizer is None else optimizer,
            lambda step: rate_factor(parts.options, parts.num_steps, step),
        )
        trainer.lr_scheduler = scheduler
        trainer._created_lr_scheduler = True
        if parts.progress.start is not None:
            rates = parts.progress.start.state["learning_rates"]
            done = {
                "last_epoch": parts.progress.start.step,
                "_step_count": parts.progress.start.step + 1,
                "_last_lr": rates,
            }
            scheduler.load_state_dict({**scheduler.state_dict(), **done})
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Called once before each optimizer step: its randomness (dropout) starts here."""
        from transformers import set_seed

        samples = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        parts = self.pawl
        seed = derive_seed(parts.seed, "step", len(parts.log.steps), parts.group.rank)
        set_seed(seed % 2**32)
        return samples

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last hook before the weights change: what is not finite ends the update here.

        Raises:
            DivergenceError: the step's loss or gradient norm is not finite; the same on every worker.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        log, group = self.pawl.log, self.pawl.group
        log.require_finite("train/loss", float(group.total(cast(Any, self)._tr_loss.detach())))
        log.require_finite("train/grad_norm", float(norm))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)  # type: ignore[misc]
        if "loss" not in logs:  # the trainer also logs a summary at the end
            return
        parts = self.pawl
        parts.log.record(parts.group.averaged(logs))
        step = len(parts.log.steps)
        if parts.group.agreed(parts.progress.checkpoints.due(step, parts.num_steps)):
            self._save_checkpoint_of(step)

    def _save_checkpoint_of(self, step: int) -> None:
        from workers.training.checkpoints.optimizer_state import moments_of

        trainer, parts = cast(Any, self), self.pawl
        weights, moments = trained_weights(trainer.model), moments_of(trainer.optimizer)
        if not parts.group.writes:
            return  # its shares are gathered by now
        state = {
            "learning_rates": [float(rate) for rate in trainer.lr_scheduler.get_last_lr()],
            "log": parts.log.steps,
        }
        report_progress()  # the disk may take its time
        parts.progress.checkpoints.save(step, state, TrainedState(weights, moments).write)
        report_progress()
