"""AdamW's moments between rounds: saved as plain tensors, loaded without running any code from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policies.errors import TrainingError, boundary, explain
from policies.shards import write_atomically


def save_optimizer_state(optimizer: Any, path: Path) -> None:
    """Write the per-parameter state; learning rate and decay are set anew each round."""
    import torch

    state = {"state": optimizer.state_dict()["state"]}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_optimizer_state(optimizer: Any, path: Path) -> None:
    """Continue with the moments in `path`.

    Raises:
        TrainingError: the file is missing, damaged, or belongs to a model of other shape.
    """
    import torch

    with boundary(TrainingError, str(_unusable(path, "it cannot be read"))):
        state = torch.load(path, map_location="cpu", weights_only=True)["state"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fits = len(state) == len(parameters) and all(
        i in state and state[i]["exp_avg"].shape == p.shape for i, p in enumerate(parameters)
    )
    if not fits:
        raise _unusable(path, "it belongs to a model with other parameters")
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _unusable(path: Path, why: str) -> TrainingError:
    return TrainingError(
        explain(
            f"the optimizer state of the last round cannot be used: {why}",
            value=str(path),
            where="training.optimizer",
            fix="restore the file, or set training.optimizer to reset",
        )
    )
