"""APO-zero on single completions: KTO with its reference point at 0, so without the mismatched forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import TrlLoss, UnpairedLoss, UnpairedTensors

if TYPE_CHECKING:
    from torch import Tensor


class APOZeroUnpaired(UnpairedLoss):
    """1 - sigmoid(beta r) if desirable, else sigmoid(beta r), arXiv 2408.06266 eq. 7 on single completions."""

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        import torch

        reward = self.config.beta * examples.logratios
        return torch.where(examples.desirable, -reward, reward).sigmoid()

    def trl(self) -> TrlLoss:
        return TrlLoss("apo_zero_unpaired")
