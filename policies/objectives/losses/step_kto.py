"""Step-KTO: KTO on the outcome and, beside it, KTO on each judged step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from policies.base.bounds import MAX_COEFFICIENT
from policies.objectives.loss import ClassWeight, StepTensors, UnpairedTensors, balanced_weights
from policies.objectives.losses.kto import KTO, kto_loss

if TYPE_CHECKING:
    from torch import Tensor


class StepKTO(KTO):
    """KTO(r; c, z0) + w (1/H) sum_h KTO(r_h; c_h, z0_s), with r_h the log-ratio of step h of H judged ones.

    DERIVED, not read: arXiv 2501.10799 (Step-KTO) says that outcome and steps both enter through KTO's value functions;
    the exact loss was not to be had, and this is the plain reading of that sentence. z0_s is the clamped mean
    log-ratio of the judged steps of mismatched completions. An example without judged steps has its outcome term only.
    """

    class Config(KTO.Config):
        """Settings of Step-KTO."""

        step_weight: float = Field(default=1.0, ge=0, le=MAX_COEFFICIENT)
        """w: weight of the steps beside the outcome; 0 is KTO."""
        step_beta: float | None = Field(default=None, gt=0, le=MAX_COEFFICIENT)
        """Beta of the steps; null takes beta."""
        step_desirable_weight: ClassWeight = "auto"
        """Weight of desirable steps; auto balances the classes by this round's counts of steps."""
        step_undesirable_weight: ClassWeight = "auto"
        """Weight of undesirable steps; auto balances the classes by this round's counts of steps."""

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        return True  # TRL knows no steps

    @property
    def reads_steps(self) -> bool:
        return True

    def step_class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        config = self.config
        return balanced_weights(
            config.step_desirable_weight,
            config.step_undesirable_weight,
            num_desirable,
            num_undesirable,
        )

    def weighted(self, examples: UnpairedTensors, class_weights: tuple[float, float]) -> Tensor:
        if examples.steps is None:
            raise ValueError("step losses need UnpairedTensors.steps")
        outcome = super().weighted(examples, class_weights)
        steps, config = examples.steps, self.config
        losses = steps.weights * kto_loss(
            steps.logratios, steps.kl, steps.desirable, beta=config.step_beta or config.beta
        )
        sums = outcome.new_zeros(outcome.shape).index_add(0, steps.rows, losses.to(outcome.dtype))
        return outcome + config.step_weight * sums / self.step_divisor(steps, outcome)

    def step_divisor(self, steps: StepTensors, outcome: Tensor) -> Tensor:
        """Return what the sum over an example's steps is divided by: their number H. [N]"""
        counts = outcome.new_zeros(outcome.shape).index_add(
            0, steps.rows, outcome.new_ones(steps.rows.shape)
        )
        return counts.clamp(min=1)
