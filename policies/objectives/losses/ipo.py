"""IPO: regress the per-token margin to 1 / (2 beta) instead of pushing it to infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class IPO(DifferenceLoss):
    """(a/|y_w| - b/|y_l| - 1/(2 beta))^2, arXiv 2310.12036 eq. 17.

    The division by the scored lengths is TRL's and HALOs' reading, confirmed to TRL by the authors; codes that use
    plain sums need another beta.
    """

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        per_token = chosen / pairs.chosen_lengths.clamp(
            min=1
        ) - rejected / pairs.rejected_lengths.clamp(min=1)
        return (per_token - 1 / (2 * self.config.beta)) ** 2

    def trl(self) -> TrlLoss:
        return TrlLoss("ipo", self.trl_arguments())
