"""Losses of users that cannot be trained on, each in its own way; `mended` classes follow what the refusal advises."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
from torch import Tensor

from policies.objectives.loss import (
    PairLoss,
    PairTensors,
    SupervisedLoss,
    SupervisedTensors,
    UnpairedLoss,
)
from policies.objectives.loss import UnpairedTensors as Singles


class Averaged(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return (-0.1 * pairs.margins).exp().mean()


class Column(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return (-0.1 * pairs.margins).exp()[:, None]


class NoTensor(UnpairedLoss):
    def per_example(self, examples: Singles) -> Any:
        return 1.0


class Infinite(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return 1 / pairs.margins


class SharpRoot(SupervisedLoss):
    def per_example(self, examples: SupervisedTensors) -> Tensor:
        return (examples.logps - examples.logps).abs().sqrt()


class Cut(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return (1 - pairs.margins.detach()).relu()


class Flat(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return 0.0 * pairs.margins


class Raising(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return pairs.chosen_logprobs  # type: ignore[attr-defined, no-any-return]


class Forgotten(PairLoss):
    """Has no formula."""


class Centred(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return (pairs.margins - pairs.margins.mean()).square() - pairs.margins


class CentredMended(Centred):
    across_rows: ClassVar[bool] = True


class Remembering(UnpairedLoss):
    seen = 0.0

    def per_example(self, examples: Singles) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * float(examples.logratios.detach().mean())
        return (self.seen - examples.logratios).sigmoid()


class Noisy(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        return -pairs.margins * torch.rand(len(pairs.margins))


class Hanging(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        time.sleep(3600)
        return -pairs.margins


class Exiting(PairLoss):
    def per_pair(self, pairs: PairTensors) -> Tensor:
        raise SystemExit(0)
