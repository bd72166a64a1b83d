"""SFT on the chosen side of pairs, TRL's `sft`: what remains of a preference loss when it prefers nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class SFTChosen(PairLoss):
    """Mean NLL over all chosen tokens of an optimizer step, as TRL's over those of a batch; beta only scales rewards.

    To imitate trajectories that need no rejected side, use the loss `sft`.
    """

    def per_pair(self, pairs: PairTensors) -> Tensor:
        if pairs.mean_chosen_length is None:
            raise ValueError("sft_chosen needs PairTensors.mean_chosen_length")
        # The mean of these over the step's pairs is the mean over the step's tokens. TRL divides by zero when every
        # row is masked; such rows are dropped before training, and the clamp keeps the formula finite.
        return -pairs.chosen_logps / pairs.mean_chosen_length.clamp(min=1)

    def trl(self) -> TrlLoss:
        return TrlLoss("sft")
