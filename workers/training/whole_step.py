"""Facts of a whole optimizer step that an objective needs, however it is cut into microbatches and shared by workers.

Two kinds of statistic: KTO's reference points, which are one mean over the step cut at 0 once, and the log-probs of
losses that look across rows, which are given those of the whole step with their own microbatch's in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers.training.distributed.process_group import WorkerGroup

if TYPE_CHECKING:
    from torch import Tensor


def values_of_step(
    parts: Sequence[tuple[Sequence[int], Tensor]], count: int, group: WorkerGroup
) -> Tensor:
    """Put values of this worker's microbatches and of all other workers' together, without gradient. [n, S]

    Args:
        parts: places of a microbatch's sequences in the step, and n values of each. At least one part, which may have
            no places: a worker without rows still says how many values there are. [n, sequences] each
        count: sequences of the step.
        group: the workers that share the step.
    """
    import torch

    first = parts[0][1]
    whole = torch.zeros(len(first), count, dtype=torch.float64)  # exact for float32
    for places, values in parts:
        if places:
            whole[:, list(places)] = values.detach().double().cpu()
    return group.filled(whole).to(device=first.device, dtype=first.dtype)


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
