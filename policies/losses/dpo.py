"""DPO: logistic loss of the margin over the reference, with smoothing (cDPO) and the NLL term of iterative RPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from policies.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class DPO(DifferenceLoss):
    """-log sigmoid(beta h), arXiv 2305.18290 eq. 7."""

    class Config(DifferenceLoss.Config):
        """Settings of DPO."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """cDPO: probability that a label is flipped; bounds the margin. TRL has no such option for this loss."""
        nll_coefficient: float = Field(default=0.0, ge=0)
        """Iterative RPO (arXiv 2404.19733 eq. 1): weight of the chosen side's NLL per scored token."""

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        smoothed = self.config.label_smoothing > 0 or self.config.nll_coefficient > 0
        return smoothed or super().needs_custom_step

    def per_pair(self, pairs: PairTensors) -> Tensor:
        loss = super().per_pair(pairs)
        if self.config.nll_coefficient == 0:
            return loss
        # Each sequence by its own length, as the paper writes it; TRL's "sft" term divides by all chosen
        # tokens of the microbatch, which favours long winners.
        nll = -pairs.chosen_logps / pairs.chosen_lengths.clamp(min=1)
        return loss + self.config.nll_coefficient * nll

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        logits = self.config.beta * (chosen - rejected)
        eps = self.config.label_smoothing
        return -(1 - eps) * logsigmoid(logits) - eps * logsigmoid(
            -logits
        )  # cDPO, eq. 3 of E. Mitchell's note

    def trl(self) -> TrlLoss:
        return TrlLoss("sigmoid", self.trl_arguments())
