"""AOT, unpaired: compares the sorted log-ratios of both sides of an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class AOTUnpaired(PairLoss):
    """cDPO of sort(a) - sort(b), arXiv 2406.05882 (unpaired AOT); the value belongs to the whole step."""

    across_rows: ClassVar[bool] = True

    class Config(PairLoss.Config):
        """Settings of AOT."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
        """Probability that a label is flipped."""

    config: Config

    def per_pair(self, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        chosen, _ = pairs.chosen_logratios.sort()
        rejected, _ = pairs.rejected_logratios.sort()
        logits = self.config.beta * (chosen - rejected)
        eps = self.config.label_smoothing
        return -(1 - eps) * logsigmoid(logits) - eps * logsigmoid(-logits)

    def trl(self) -> TrlLoss:
        return TrlLoss("aot_unpaired", {"label_smoothing": self.config.label_smoothing})
