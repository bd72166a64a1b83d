"""SPPO with hard win probabilities: both log-ratios are regressed to half a step of 1 / beta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class SPPOHard(PairLoss):
    """(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2, arXiv 2405.00675 eq. 4.7 with P = 1 and 0 (TRL omits the factor 1/2).

    The paper's step size eta is 1 / beta.
    """

    def per_pair(self, pairs: PairTensors) -> Tensor:
        target = 0.5 / self.config.beta
        chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
        return (chosen - target) ** 2 + (rejected + target) ** 2

    def trl(self) -> TrlLoss:
        return TrlLoss("sppo_hard")
