"""DMPO: DPO over turns, in which later turns count less, by the place of the turn in its own trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from policies.examples.kinds import TokenSequence
from policies.objectives.loss import PairLoss, PairTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class DMPO(PairLoss):
    """-log sigmoid(beta sum_j phi(j) Δ_j^w - beta sum_j phi(j) Δ_j^l), arXiv 2406.14868.

    Δ_j is the log-ratio of turn j, summed over its tokens; phi comes from each trajectory's own number of turns,
    which is what makes the partition function cancel between sides of unequal length. One turn on each side is DPO.
    The released script leaves a trajectory's first turn out of its index list; here every turn of the policy counts,
    from the first in which the two sides differ.
    """

    class Config(PairLoss.Config):
        """Settings of DMPO."""

        gamma: float = Field(default=0.7, gt=0, le=1)
        """Discount of a turn against the one before it; 1 lowers the weights linearly, (T - j) / T."""

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        return True  # TRL knows no turns

    @property
    def weighs_tokens(self) -> bool:
        return True

    def token_weights(self, sequence: TokenSequence, other: TokenSequence) -> Sequence[float]:
        """Weight phi(j) on each scored token of the j-th turn from the first one that differs from the other side's.

        What the two sides share is the state that the pair starts from: its turns weigh 0 and do not count, whether
        the builder left them unscored (`step_pairs`) or not, so that one pair has one loss whoever made it. They
        would otherwise not cancel: turn j of 3 weighs more than turn j of 2. The turn in which the sides part
        counts whole. A scored observation (`training.loss_mask: completion`) counts as its turn does.
        """
        scored = [i for i, m in enumerate(sequence.loss_mask) if m]
        if not sequence.turns:
            return [1.0] * len(scored)
        fork = _fork(sequence.token_ids, other.token_ids)
        starts = [
            t.start
            for t in sequence.turns
            if t.end > fork and any(sequence.loss_mask[t.start : t.end])
        ]
        weights = turn_weights(max(1, len(starts)), self.config.gamma)
        first = min(starts, default=len(sequence.token_ids))
        return [
            0.0
            if i < min(first, fork)
            else weights[max(0, sum(start <= i for start in starts) - 1)]
            for i in scored
        ]

    def per_pair(self, pairs: PairTensors) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.config.beta * pairs.margins)

    def trl(self) -> TrlLoss:
        return TrlLoss("sigmoid")


def _fork(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that both begin with; 0 for equal ones, which part nowhere."""
    shared = 0
    for left, right in zip(one, other, strict=False):  # one may end first
        if left != right:
            break
        shared += 1
    return 0 if shared == len(one) == len(other) else shared


def turn_weights(num_turns: int, gamma: float) -> list[float]:
    """Weights phi(j) = gamma^j (1 - gamma^(T-j)) / (1 - gamma^T) of turns j = 0 .. T-1; the first is 1.

    Example: 3 turns at gamma 0.7 weigh 1, 0.543379 and 0.223744.
    """
    if gamma == 1.0:  # the limit of the quotient
        return [(num_turns - j) / num_turns for j in range(num_turns)]
    total = 1 - gamma**num_turns
    return [gamma**j * (1 - gamma ** (num_turns - j)) / total for j in range(num_turns)]
