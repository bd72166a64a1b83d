"""APO-down: lower both sides, the rejected more; for chosen answers worse than the policy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class APODown(PairLoss):
    """sigmoid(beta a) + (1 - sigmoid(beta h)), arXiv 2408.06266 eq. 8."""

    def per_pair(self, pairs: PairTensors) -> Tensor:
        beta = self.config.beta
        return (beta * pairs.chosen_logratios).sigmoid() + (-beta * pairs.margins).sigmoid()

    def trl(self) -> TrlLoss:
        return TrlLoss("apo_down")
