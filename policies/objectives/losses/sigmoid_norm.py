"""Length-normalised DPO: the logistic loss of log-ratios per scored token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import DifferenceLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class SigmoidNorm(DifferenceLoss):
    """-log sigmoid(beta (a/|y_w| - b/|y_l|)), arXiv 2411.15124 section 5.1.2 (Tulu 3)."""

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        per_token = chosen / pairs.chosen_lengths.clamp(
            min=1
        ) - rejected / pairs.rejected_lengths.clamp(min=1)
        return -logsigmoid(self.config.beta * per_token)

    def trl(self) -> TrlLoss:
        return TrlLoss("sigmoid_norm", self.trl_arguments())
