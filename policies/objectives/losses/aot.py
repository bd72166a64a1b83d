"""AOT, paired: compares the sorted margins of an optimizer step, i.e. their distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class AOT(PairLoss):
    """cDPO of sort(S(w) - S(l)) - sort(S_ref(w) - S_ref(l)), arXiv 2406.05882 (paired AOT).

    The value belongs to the pairs of an optimizer step together, however they are cut into microbatches: with one
    pair it is DPO, and a larger batch_size compares larger samples of the two distributions.
    """

    across_rows: ClassVar[bool] = True

    class Config(PairLoss.Config):
        """Settings of AOT."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """Probability that a label is flipped."""

    config: Config

    def per_pair(self, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        policy, _ = (pairs.chosen_logps - pairs.rejected_logps).sort()
        reference, _ = (pairs.ref_chosen_logps - pairs.ref_rejected_logps).sort()
        logits = self.config.beta * (policy - reference)
        eps = self.config.label_smoothing
        return -(1 - eps) * logsigmoid(logits) - eps * logsigmoid(-logits)

    def trl(self) -> TrlLoss:
        return TrlLoss("aot", {"label_smoothing": self.config.label_smoothing})
