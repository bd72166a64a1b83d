"""BCO on pairs: each side classified on its own, without the running shift of the unpaired form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class BCOPair(PairLoss):
    """-log sigmoid(beta a) - log sigmoid(-beta b), arXiv 2404.04656 with shift 0, as TRL."""

    def per_pair(self, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        beta = self.config.beta
        return -logsigmoid(beta * pairs.chosen_logratios) - logsigmoid(
            -beta * pairs.rejected_logratios
        )

    def trl(self) -> TrlLoss:
        return TrlLoss("bco_pair")
