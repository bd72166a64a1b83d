"""Weights, gradients and moments in shares, one on each training worker (FSDP), and whole again to be written.

Torch's `fully_shard` is called here rather than by accelerate, which shards on accelerators only: so the same code
runs on CPUs, where it is tested. Imports torch: import this module inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(trainer: Any, device: str) -> None:
    """Keep only this worker's share of the trainer's model: layer by layer, and what is around the layers.

    A layer is made whole for its own forward and backward pass. Trainers leave such a model alone when told that it
    came sharded: it is wrapped in nothing, and its gradients are averaged by itself.
    """
    model = trainer.model
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    layers = set(_layer_classes(model))
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trainer.is_distributed_loading_by_transformers = True


def _layer_classes(model: Any) -> set[str]:
    """Names of the classes that transformers never splits between devices: the model's layers."""
    found: set[str] = set()
    for module in model.modules():
        found.update(getattr(module, "_no_split_modules", None) or ())
    return found


def whole(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with all workers' shares, on the CPU; every worker has to ask, and in the same order."""
    return {
        name: value.full_tensor().cpu() if isinstance(value, DTensor) else value
        for name, value in values.items()
    }


def share_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This worker's share of a moment, cut as its parameter is; a moment that is no matrix (a count) stays as it is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    moved = value.to(parameter.device)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements)


def copy_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Give a model that is not sharded the trained weights, by name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
