"""NCA for pairs: absolute rewards, so that the chosen likelihood does not fall with the rejected one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from policies.base.bounds import MAX_COEFFICIENT
from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class NCAPair(PairLoss):
    """-ls(beta a) - ls(-beta a)/2 - ls(-beta b)/2, arXiv 2402.05369 (pairwise NCA)."""

    class Config(PairLoss.Config):
        """Settings of NCA."""

        beta: float = Field(default=0.01, gt=0, le=MAX_COEFFICIENT)
        """Strength of the pull to the reference; the paper uses 0.01."""

    def per_pair(self, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        chosen = self.config.beta * pairs.chosen_logratios
        rejected = self.config.beta * pairs.rejected_logratios
        return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)

    def trl(self) -> TrlLoss:
        return TrlLoss("nca_pair")
