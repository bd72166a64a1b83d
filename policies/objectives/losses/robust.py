"""Robust DPO: an unbiased DPO loss when labels are flipped at a known rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from policies.objectives.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class RobustDPO(DifferenceLoss):
    """[-(1-eps) ls(beta h) + eps ls(-beta h)] / (1 - 2 eps), arXiv 2403.00409 eq. 12; it may be negative."""

    class Config(DifferenceLoss.Config):
        """Settings of robust DPO."""

        label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
        """eps: share of flipped labels. At one half the labels say nothing."""

    config: Config

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        logits = self.config.beta * (chosen - rejected)
        eps = self.config.label_smoothing
        return (-(1 - eps) * logsigmoid(logits) + eps * logsigmoid(-logits)) / (1 - 2 * eps)

    def trl(self) -> TrlLoss:
        return TrlLoss(
            "robust", {**self.trl_arguments(), "label_smoothing": self.config.label_smoothing}
        )
