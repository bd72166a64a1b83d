"""Makes an update's steps survive: a start in the middle, checkpoints on the way, and no step that is not finite.

A mixin for the trainers of transformers. The batches and the randomness of a step follow from its number and the
update's seed, so an update that was cut off goes on with the very steps that it would have made. No trl in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from policies.base.errors import TrainingError, boundary
from policies.base.seeds import derive_seed
from policies.objectives.loss import Loss
from workers.cluster.heartbeat import report_progress
from workers.training.batches.plan import MicroBatch
from workers.training.checkpoints.store import Checkpoint, Checkpoints
from workers.training.checkpoints.tensor_files import save_tensors
from workers.training.distributed.process_group import WorkerGroup
from workers.training.engine import TrainingOptions
from workers.training.schedule import rate_factor
from workers.training.step_log import StepLog

if TYPE_CHECKING:
    from torch import Tensor

    from workers.training.batches.collate import Collator

WEIGHTS, MOMENTS = "weights.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class TrainerParts:
    """The parts that one update hands to its trainer."""

    loss: Loss
    options: TrainingOptions
    batches: Sequence[MicroBatch]
    """All microbatches of the update that are this worker's, in order."""
    collate: Collator
    log: StepLog
    accumulation: int
    step_rows: Sequence[Sequence[int]]
    """Rows of each optimizer step, in order, those of all workers."""
    custom: bool
    """Compute with `loss` itself instead of TRL's spelling of it."""
    across_rows: bool
    """The loss needs all rows of a step at once, and a microbatch of a worker is only a part of them."""
    optimizer_state: str | None
    seed: int
    checkpoints: Checkpoints
    start: Checkpoint | None
    """Where the update goes on; None begins it."""
    group: WorkerGroup

    @property
    def num_steps(self) -> int:
        return len(self.batches) // self.accumulation


class ResumableSteps:
    """Its methods replace hooks of transformers' Trainer; a parity test pins their names."""

    pawl: ClassVar[TrainerParts]

    def get_train_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        parts = self.pawl
        done = 0 if parts.start is None else parts.start.step * parts.accumulation
        batches, collate = cast(Any, parts.batches[done:]), cast(Any, parts.collate)
        return DataLoader(batches, batch_size=None, shuffle=False, collate_fn=collate)

    def create_optimizer(self, model: Any = None) -> Any:
        from workers.training.checkpoints.optimizer_state import load_optimizer_state

        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        parts = self.pawl
        if parts.start is not None:
            load_optimizer_state(optimizer, parts.start.path / MOMENTS)
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
        if parts.start is not None:
            rates = parts.start.state["learning_rates"]
            done = {
                "last_epoch": parts.start.step,
                "_step_count": parts.start.step + 1,
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
        if parts.group.agreed(parts.checkpoints.due(step, parts.num_steps)):
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
        parts.checkpoints.save(step, state, lambda folder: write_tensors(weights, moments, folder))
        report_progress()


def write_tensors(weights: dict[str, Tensor], moments: dict[str, Tensor], folder: Path) -> None:
    """Write the trained weights (an adapter's only, when there is one) and the moments."""
    save_tensors(weights, folder / WEIGHTS)
    save_tensors(moments, folder / MOMENTS)


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Every parameter that the update changes, once and whole, under its name in the trainer's model."""
    from workers.training.distributed.fsdp import whole

    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {name: value.contiguous() for name, value in whole(trained).items()}


def load_trained_weights(model: Any, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint into the trainer's model.

    Raises:
        TrainingError: they are not those of this model.
    """
    import torch
    from safetensors.torch import load_file

    with boundary(TrainingError, f"the checkpoint {checkpoint.path} cannot be read"):
        saved = load_file(checkpoint.path / WEIGHTS)
    own = trained_weights(model)
    if saved.keys() != own.keys() or any(saved[n].shape != own[n].shape for n in own):
        raise TrainingError(
            f"the checkpoint {checkpoint.path} holds other weights than the model that is trained. "
            "Fix: remove the folder; the update then begins anew"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])
