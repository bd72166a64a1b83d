"""KTO: prospect-theoretic value of single completions against a KL reference point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from policies.objectives.loss import TrlLoss, UnpairedLoss, UnpairedTensors

if TYPE_CHECKING:
    from torch import Tensor


class KTO(UnpairedLoss):
    """1 - sigmoid(beta (r - z0)) if desirable, else 1 - sigmoid(beta (z0 - r)), arXiv 2402.01306 eq. 7.

    z0 is one number for each optimizer step: the mean log-ratio of mismatched completions, over all microbatches and
    workers, cut at 0 from below once. Cut in parts it would be larger, because the mean of the cut parts is.
    """

    class Config(UnpairedLoss.Config):
        """Settings of KTO."""

        kl_share: float = Field(default=1.0, gt=0, le=1)
        """Share of an optimizer step's rows with a mismatched partner, for z0; fewer are faster and noisier. It
        changes which completions the estimate is made from, never how: one mean a step, cut at 0 once."""

    config: Config

    @property
    def kl_share(self) -> float:
        return self.config.kl_share

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        return kto_loss(examples.logratios, examples.kl, examples.desirable, beta=self.config.beta)

    def trl(self) -> TrlLoss:
        return TrlLoss("kto")


def kto_loss(logratios: Tensor, kl: Tensor, desirable: Tensor, *, beta: float) -> Tensor:
    """KTO's loss of each log-ratio, before class weights. [N]

    Args:
        logratios: of whole completions, or of steps. [N]
        kl: the reference point z0; a constant: no gradient flows into the mismatched rows. []
        desirable: [N] bool
        beta: strength of the pull to the reference.
    """
    import torch

    distance = beta * (logratios - kl.detach())
    return torch.where(desirable, -distance, distance).sigmoid()
