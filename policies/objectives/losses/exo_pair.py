"""EXO for pairs: reverse KL from the model's preference to the smoothed label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from policies.objectives.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class EXOPair(DifferenceLoss):
    """q (log q - log(1-eps)) + (1-q) (log(1-q) - log eps) with q = sigmoid(beta h), arXiv 2402.00856 eq. 16."""

    class Config(DifferenceLoss.Config):
        """Settings of EXO."""

        label_smoothing: float = Field(default=1.0e-3, gt=0, lt=0.5)
        """eps: probability given to the rejected side. The loss is infinite at 0."""

    config: Config

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        logits = self.config.beta * (chosen - rejected)
        eps = self.config.label_smoothing
        win = logits.sigmoid() * (logsigmoid(logits) - math.log1p(-eps))
        lose = (-logits).sigmoid() * (logsigmoid(-logits) - math.log(eps))
        return win + lose

    def trl(self) -> TrlLoss:
        return TrlLoss(
            "exo_pair", {**self.trl_arguments(), "label_smoothing": self.config.label_smoothing}
        )
