"""SFT: plain likelihood of the policy's own turns; rejection sampling, warm starts, and a baseline for preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from policies.objectives.loss import SupervisedLoss, SupervisedTensors, TrlLoss

if TYPE_CHECKING:
    from torch import Tensor


class SFT(SupervisedLoss):
    """-log pi(y|x) over the scored tokens, averaged; prompts and observations are read, never imitated."""

    class Config(SupervisedLoss.Config):
        """Settings of SFT."""

        average: Literal["tokens", "sequences"] = "tokens"
        """Mean over all scored tokens of an optimizer step, as TRL: long examples weigh more. Or each example by
        its own length first, so that all weigh alike."""

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        return self.config.average == "sequences"  # TRL has the mean over tokens only

    def per_example(self, examples: SupervisedTensors) -> Tensor:
        if self.config.average == "sequences":
            return -examples.logps / examples.lengths.clamp(min=1)
        return -examples.logps / examples.mean_length.clamp(min=1)

    def trl(self) -> TrlLoss:
        return TrlLoss("nll")
