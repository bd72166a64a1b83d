"""DPO: logistic loss of the margin over the reference, with smoothed or soft labels and iterative RPO's NLL term."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COEFFICIENT
from policies.base.requirements import Requirements
from policies.objectives.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor


class DPO(DifferenceLoss):
    """-log sigmoid(beta h), arXiv 2305.18290 eq. 7."""

    class Config(DifferenceLoss.Config):
        """Settings of DPO."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """cDPO: probability that a label is flipped; bounds the margin. TRL has no such option for this loss."""
        nll_coefficient: float = Field(default=0.0, ge=0, le=MAX_COEFFICIENT)
        """Iterative RPO (arXiv 2404.19733 eq. 1): weight of the chosen side's NLL per scored token."""
        soft_labels: bool = False
        """Read each pair's probability that chosen is really better (`PreferencePair.soft_label`) instead of taking
        every label for certain; bounds the margin at its log-odds over beta. Not together with label_smoothing."""

        def requires(self) -> Requirements:
            """Probabilities, where labels are soft."""
            return super().requires() + Requirements(probabilities=self.soft_labels)

        @model_validator(mode="after")
        def _one_source_of_doubt(self) -> Self:
            if self.soft_labels and self.label_smoothing > 0:
                raise ValueError(
                    "soft_labels and label_smoothing both say how sure a label is: set one of them only"
                )
            return self

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        config = self.config
        smoothed = config.label_smoothing > 0 or config.soft_labels or config.nll_coefficient > 0
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
        if self.config.soft_labels:
            if pairs.soft_labels is None:
                raise ValueError("soft_labels needs PairTensors.soft_labels")
            doubt: Tensor | float = 1 - pairs.soft_labels
        else:
            doubt = self.config.label_smoothing
        # cDPO, eq. 3 of E. Mitchell's note; with soft labels the doubt is each pair's own
        return -(1 - doubt) * logsigmoid(logits) - doubt * logsigmoid(-logits)

    def trl(self) -> TrlLoss:
        return TrlLoss("sigmoid", self.trl_arguments())
