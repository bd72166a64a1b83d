"""Hinge: a margin of 1 in reward is enough (RSO, SLiC)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class Hinge(DifferenceLoss):
    """max(0, 1 - beta h), arXiv 2309.06657 (RSO) after 2305.10425 (SLiC-HF)."""

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        return (1 - self.config.beta * (chosen - rejected)).relu()

    def trl(self) -> TrlLoss:
        return TrlLoss("hinge", self.trl_arguments())
