"""Sentence-level KTO (fKTO of FactAlign): KTO on the response and on each judged sentence of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.loss import StepTensors
from policies.losses.step_kto import StepKTO

if TYPE_CHECKING:
    from torch import Tensor


class SentenceKTO(StepKTO):
    """mean_i KTO(r_i; c_i, z0) + w mean_s KTO(r_s; c_s, z0_s) over all sentences s of a microbatch.

    arXiv 2410.01691 (FactAlign); the formula is that of its released trainer (github.com/MiuLab/FactAlign,
    kto_trainer_fg.py: w is `fg_loss_weight`, 1 there with beta = `fg_beta` = 0.1 and class weights 1). It is Step-KTO
    but for one thing: the mean runs over all sentences of the microbatch, not over each response's own, so a response
    of many sentences weighs more, and the value belongs to the microbatch.
    """

    def step_divisor(self, steps: StepTensors, outcome: Tensor) -> Tensor:
        """Mean number of judged sentences of an example in this microbatch, the same for each. [N]"""
        mean = max(1, len(steps.rows)) / max(1, len(outcome))
        return outcome.new_full(outcome.shape, mean)
