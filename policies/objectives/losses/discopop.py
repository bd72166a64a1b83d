"""DiscoPOP: logistic and exponential loss, blended by the margin; found by an LM-driven search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from policies.base.bounds import MAX_COEFFICIENT
from policies.objectives.loss import MAX_EXPONENT, DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class DiscoPOP(DifferenceLoss):
    """(1-m)(-log sigmoid(beta h)) + m exp(-beta h) with m = sigmoid(beta h / tau), arXiv 2406.08414 eq. 5."""

    class Config(DifferenceLoss.Config):
        """Settings of DiscoPOP."""

        beta: float = Field(default=0.05, gt=0, le=MAX_COEFFICIENT)
        """Strength of the pull to the reference; the paper uses 0.05."""
        tau: float = Field(default=0.05, gt=0, le=MAX_COEFFICIENT)
        """Width of the blend."""

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        return (
            True  # TRL multiplies an infinite exp(-beta h) by a zero blend: NaN below beta h = -88
        )

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        logits = self.config.beta * (chosen - rejected)
        blend = (logits / self.config.tau).sigmoid()
        exponential = (-logits).clamp(max=MAX_EXPONENT).exp()
        return (1 - blend) * -logsigmoid(logits) + blend * exponential

    def trl(self) -> TrlLoss:
        return TrlLoss("discopop", {**self.trl_arguments(), "discopop_tau": self.config.tau})
