"""SFT on the chosen side of pairs, TRL's `sft`: what remains of a preference loss when it prefers nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class SFTChosen(PairLoss):
    """Mean NLL over all chosen tokens of the microbatch, as TRL; beta only scales the logged rewards.

    To imitate trajectories that need no rejected side, use the loss `sft`.
    """

    def per_pair(self, pairs: PairTensors) -> Tensor:
        # One number for the microbatch, repeated, so that it reduces like the other losses. TRL divides by zero
        # when every row is masked; such rows are dropped before training, and the clamp keeps the formula finite.
        nll = -pairs.chosen_logps.sum() / pairs.chosen_lengths.sum().clamp(min=1)
        return nll.expand(pairs.chosen_logps.shape)

    def trl(self) -> TrlLoss:
        return TrlLoss("sft")
