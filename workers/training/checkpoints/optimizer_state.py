"""AdamW's moments on disk, between rounds and inside an update: plain tensors, no code in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.errors import TrainingError, boundary, explain
from policies.storage.files import write_atomically
from workers.training.checkpoints.tensor_files import save_tensors

if TYPE_CHECKING:
    from torch import Tensor


def moments_of(optimizer: Any) -> dict[str, Tensor]:
    """The per-parameter state, whole, named `<index of the parameter>.<value>`; rate and decay are set anew.

    Every worker that holds a share has to ask.
    """
    from workers.training.distributed.fsdp import whole

    state = {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return {name: value.contiguous() for name, value in whole(state).items()}


def save_moments(tensors: dict[str, Tensor], path: Path) -> None:
    """Write what `moments_of` gave, durably."""
    write_atomically(path, lambda temporary: save_tensors(tensors, temporary))


def load_optimizer_state(optimizer: Any, path: Path) -> None:
    """Continue with the moments in `path`.

    Raises:
        TrainingError: the file is missing, damaged, or belongs to a model of other shape.
    """
    set_moments(optimizer, read_moments(path), path)


def read_moments(path: Path) -> dict[str, Tensor]:
    """Read what `save_moments` wrote.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    from safetensors.torch import load_file

    with boundary(TrainingError, str(_unusable(path, "it cannot be read"))):
        return load_file(path)


def set_moments(optimizer: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give the optimizer the moments that `moments_of` made.

    Raises:
        TrainingError: they belong to a model of other shape; `path` is named.
    """
    from workers.training.distributed.fsdp import share_like

    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fits = len(state) == len(parameters) and all(
        i in state and state[i]["exp_avg"].shape == p.shape for i, p in enumerate(parameters)
    )
    if not fits:
        raise _unusable(path, "it belongs to a model with other parameters")
    for place, moments in state.items():
        for name, value in moments.items():
            moments[name] = share_like(value, parameters[place])
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _unusable(path: Path, why: str) -> TrainingError:
    return TrainingError(
        explain(
            f"the optimizer state cannot be used: {why}",
            value=str(path),
            where="training.optimizer",
            fix="restore the file, or set training.optimizer to reset",
        )
    )
