"""APO-zero: raise the chosen, lower the rejected; for chosen answers better than the policy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class APOZero(PairLoss):
    """(1 - sigmoid(beta a)) + sigmoid(beta b), arXiv 2408.06266 eq. 7."""

    def per_pair(self, pairs: PairTensors) -> Tensor:
        beta = self.config.beta
        chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
        return (-chosen).sigmoid() + rejected.sigmoid()  # sigmoid(-x) is 1 - sigmoid(x), exactly

    def trl(self) -> TrlLoss:
        return TrlLoss("apo_zero")
