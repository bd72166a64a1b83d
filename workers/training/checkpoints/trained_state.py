"""The changes that the steps of an update have made so far: trained weights and the optimizer's moments, in tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.errors import TrainingError, boundary
from workers.training.checkpoints.tensor_files import save_tensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, MOMENTS = "weights.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class TrainedState:
    """Tensors by name, whole: an adapter's weights only, when there is one; nothing of an engine that has none."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write what there is to the folder of a checkpoint."""
        for name, tensors in ((WEIGHTS, self.weights), (MOMENTS, self.moments)):
            if tensors:
                save_tensors(dict(tensors), folder / name)

    @classmethod
    def read(cls, folder: Path) -> TrainedState:
        """Read what `write` wrote.

        Raises:
            TrainingError: a file cannot be read.
        """
        return cls(*(_tensors(folder / name) for name in (WEIGHTS, MOMENTS)))


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    from safetensors.torch import load_file

    with boundary(TrainingError, f"the checkpoint {path.parent} cannot be read"):
        return load_file(path)


def trained_weights(model: Any) -> dict[str, Tensor]:
    """Every parameter that the update changes, once and whole, under its name in the trainer's model."""
    from workers.training.distributed.fsdp import whole

    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {name: value.contiguous() for name, value in whole(trained).items()}


def load_trained_weights(model: Any, saved: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of the checkpoint at `path` into the model that is trained.

    Raises:
        TrainingError: they are not those of this model.
    """
    import torch

    own = trained_weights(model)
    if saved.keys() != own.keys() or any(saved[n].shape != own[n].shape for n in own):
        raise TrainingError(
            f"the checkpoint {path} holds other weights than the model that is trained. "
            "Fix: remove the folder; the update then begins anew"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])
