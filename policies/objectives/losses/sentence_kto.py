"""Sentence-level KTO (fKTO of FactAlign): KTO on the response and on each judged sentence of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.objectives.loss import StepTensors
from policies.objectives.losses.step_kto import StepKTO

if TYPE_CHECKING:
    from torch import Tensor


class SentenceKTO(StepKTO):
    """mean_i KTO(r_i; c_i, z0) + w mean_s KTO(r_s; c_s, z0_s) over all sentences s of an optimizer step.

    arXiv 2410.01691 (FactAlign); the formula is that of its released trainer (github.com/MiuLab/FactAlign,
    kto_trainer_fg.py: w is `fg_loss_weight`, 1 there with beta = `fg_beta` = 0.1 and class weights 1). It is Step-KTO
    but for one thing: the mean runs over all sentences of the batch, not over each response's own, so a response of
    many sentences weighs more. The batch is the optimizer step, however it is cut into microbatches.
    """

    def step_divisor(self, steps: StepTensors, outcome: Tensor) -> Tensor:
        """Mean number of judged sentences of an example of the optimizer step, the same for each. [N]"""
        if steps.mean_per_example is None:
            raise ValueError("sentence_kto needs StepTensors.mean_per_example")
        mean = steps.mean_per_example.to(outcome.dtype)
        # Without any judged sentence the sum that this divides is 0 too.
        return mean.clamp(min=1e-6).expand(outcome.shape)
