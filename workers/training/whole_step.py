"""Facts of a whole optimizer step that an objective needs, however it is cut into microbatches and shared by workers.

Two kinds of statistic: KTO's reference points, which are one mean over the step cut at 0 once, and the rows of losses
that look across rows, which are given the rows of the whole step with their own microbatch's rows in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from policies.objectives.loss import PairTensors, SupervisedTensors, UnpairedTensors
from workers.training.distributed.process_group import WorkerGroup

if TYPE_CHECKING:
    from torch import Tensor

Rows = TypeVar("Rows", PairTensors, UnpairedTensors, SupervisedTensors)


def values_by_row(batch: PairTensors | UnpairedTensors | SupervisedTensors) -> dict[str, Tensor]:
    """The values that a batch has for each of its rows, without gradient, by field. [B] each"""
    import torch

    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {
        name: value.detach()
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and value.dim() == 1
    }


@dataclass(frozen=True)
class StepRows:
    """Values of all rows of an optimizer step, the same on every worker. [R] each"""

    values: Mapping[str, Tensor]
    weights: Tensor
    """Weight of each row."""

    def with_live(self, batch: Rows, places: Sequence[int]) -> Rows:
        """The rows of the step; those of `batch`, at `places` among them, with their gradient."""
        import torch

        at = torch.tensor(places, device=self.weights.device)
        merged: dict[str, Any] = {
            name: whole.to(getattr(batch, name).dtype).index_put((at,), getattr(batch, name))
            for name, whole in self.values.items()
        }
        return dataclasses.replace(batch, **merged)


def rows_of_step(
    parts: Sequence[tuple[Sequence[int], Mapping[str, Tensor]]], count: int, group: WorkerGroup
) -> StepRows:
    """Put the rows of this worker's microbatches and of all other workers' together.

    Args:
        parts: places of a microbatch's rows in the step, and their values; `weights` among them. At least one part,
            which may have no places: a worker without rows still says which values there are.
        count: rows of the step.
        group: the workers that share the step.
    """
    import torch

    names = sorted(parts[0][1])
    whole = torch.zeros(
        len(names), count, dtype=torch.float64
    )  # exact for float32, counts and bits
    for places, values in parts:
        if places:
            whole[:, list(places)] = torch.stack([values[name].double().cpu() for name in names])
    device = parts[0][1]["weights"].device
    filled = dict(zip(names, group.filled(whole).to(device), strict=True))
    weights = filled.pop("weights").to(parts[0][1]["weights"].dtype)
    return StepRows(filled, weights)


def reference_point(logratios: Sequence[Tensor], group: WorkerGroup, like: Tensor) -> Tensor:
    """z0 of KTO: the mean log-ratio over all microbatches and workers of a step, then cut at 0 from below. []

    The cut comes last: a mean of parts that are each cut is larger than the mean (arXiv 2402.01306, section 4.1, has
    one estimate for a batch). Without any log-ratio: 0, the estimate's lower end.

    Args:
        logratios: of mismatched completions, or of the judged steps in them, by microbatch. [K] each
        group: the workers that share the step.
        like: a tensor of the type and device that the result gets.
    """
    import torch

    sums = torch.zeros(2, dtype=torch.float64, device=like.device)
    for part in logratios:
        sums += torch.stack([part.double().sum(), part.new_tensor(len(part)).double()])
    summed = group.total(sums)
    point: Tensor = (summed[0] / summed[1].clamp(min=1)).clamp(min=0)
    return point.to(like.dtype)
