"""Losses as users write them, for tests of what the engine and the plan make of them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from policies.objectives.loss import (
    PairLoss,
    PairTensors,
    SupervisedLoss,
    SupervisedTensors,
    TrlLoss,
    UnpairedLoss,
    UnpairedTensors,
)
from policies.objectives.losses.hinge import Hinge
from policies.objectives.losses.kto import KTO


class ThousandHinge(Hinge):
    """Changes the formula and inherits the spelling of another one."""

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        return 1000 * super().of_scores(chosen, rejected, pairs)


class BreaksAway(Hinge):
    """Has no bound as soon as the policy has moved from the reference."""

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        moved = (chosen - rejected).abs() > 1e-5
        return super().of_scores(chosen, rejected, pairs) + torch.where(moved, torch.inf, 0.0)


class MiddleHinge(ThousandHinge):
    """Changes nothing of a class that changed the formula."""


class FirmHinge(Hinge):
    """Changes a default alone."""

    class Config(Hinge.Config):
        """Settings."""

        beta: float = 0.5
        """Stronger."""


class SpelledHinge(Hinge):
    """Spells a formula that it does not define."""

    def trl(self) -> TrlLoss:
        return TrlLoss("ipo")


class SteepKTO(KTO):
    """Changes the formula of an unpaired loss."""

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        return 3 * super().per_example(examples)


class PlainPairs(PairLoss):
    """Nothing but a formula."""

    def per_pair(self, pairs: PairTensors) -> Tensor:
        return (1 - 0.2 * pairs.margins).clamp(min=0) ** 2


class PlainSingles(UnpairedLoss):
    """Nothing but a formula, for single trajectories."""

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        sign = torch.where(examples.desirable, -1.0, 1.0)
        return (sign * 0.1 * examples.logratios).exp()


class PlainImitation(SupervisedLoss):
    """Nothing but a formula, for demonstrations."""

    def per_example(self, examples: SupervisedTensors) -> Tensor:
        return -examples.logps / examples.lengths.sqrt()


class CentredPairs(PairLoss):
    """Compares each margin with the mean of the step's."""

    across_rows: ClassVar[bool] = True

    def per_pair(self, pairs: PairTensors) -> Tensor:
        margins = 0.1 * pairs.margins
        return (1 - margins).relu() + (margins - margins.mean()) ** 2
