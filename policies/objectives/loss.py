"""Losses as pure functions of a scored batch; those of the kinds that ship read it through a view.

Notation (all float32): `a = chosen_logps - ref_chosen_logps`, `b` likewise for rejected, `h = a - b`.
A log-prob sum runs over the tokens that the policy wrote, i.e. where the loss mask is 1; with several turns that is
every turn of the policy and no observation, which makes DPO the M-DPO, and KTO the M-KTO, of arXiv 2409.02392.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COEFFICIENT
from policies.base.component import Component, Family
from policies.examples.kinds import (
    Example,
    PreferencePair,
    SupervisedExample,
    TokenSequence,
    UnpairedExample,
)
from policies.examples.scored_batch import ScoredBatch as ScoredBatch
from policies.examples.scored_batch import StepTensors as StepTensors
from policies.examples.stored import kind_of
from policies.objectives.class_weights import ClassWeight as ClassWeight
from policies.objectives.class_weights import balanced_weights as balanced_weights
from policies.objectives.formulas import trl_spells
from policies.objectives.views import PairTensors as PairTensors
from policies.objectives.views import SupervisedTensors as SupervisedTensors
from policies.objectives.views import UnpairedTensors as UnpairedTensors
from policies.objectives.views import pair_metrics, unpaired_metrics

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

MAX_EXPONENT = 80.0
"""exp() of more than 88 is infinite in float32; exponents are cut here, as TRL does for alpha divergences."""


@dataclass(frozen=True)
class TrlLoss:
    """TRL's spelling of a loss: `loss_type` and further arguments of its `DPOConfig`, `KTOConfig` or `SFTConfig`."""

    loss_type: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Loss(Component):
    """A training objective over one kind of example. One over a kind of your own gives `losses`.

    It is computed for one microbatch at a time, so the loss of a row must depend on nothing but that row and what is
    given for the whole optimizer step (`kl`, the mean lengths); `across_rows` is for losses of which that is not true.
    """

    kind: ClassVar[type[Example]]
    """The kind that it learns from; the name of one that ships will do."""
    kind_name: ClassVar[str] = ""
    """The kind's name; follows from `kind`, and is known where the kind is not imported."""
    reference_names: ClassVar[tuple[str, ...]] = ()
    """References whose log-probs it reads: none, or the round's `reference`."""
    across_rows: ClassVar[bool] = False
    """Whether the loss of a row depends on other rows (sorts them, compares with their mean). Such a loss is always
    given all rows of the optimizer step: with several microbatches or workers that costs a second forward pass."""

    class Config(Component.Config):
        """Settings that every loss has: none."""

    config: Config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in vars(cls):
            cls.kind = kind_of(cls.kind, cls)
            cls.kind_name = cls.kind.kind_name

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs_custom_step(self) -> bool:
        """Tell whether an engine must compute with our formula because TRL has no (safe) spelling of it."""
        return False

    @property
    def trl_computes(self) -> bool:
        """Tell whether TRL may compute the loss: the class that defines the formula says how TRL spells it."""
        return trl_spells(type(self)) and not self.needs_custom_step

    def trl(self) -> TrlLoss:
        """The same objective in TRL's own terms, for the TRL engine and the parity tests.

        Without `trl_computes` it is the nearest objective that TRL accepts: the engine then uses it only to
        configure the trainer around our formula. A loss of your own needs none.
        """
        return TrlLoss("nll")

    def losses(self, batch: ScoredBatch) -> Tensor:
        """Loss of each example, before `batch.weights`. [B]"""
        raise NotImplementedError

    def metrics(self, batch: ScoredBatch) -> dict[str, Tensor]:
        """Means over a microbatch that the step's log shows beside the loss, without gradient. [] each"""
        return {"logps": batch.logps.detach().mean()}

    @property
    def kl_share(self) -> float:
        """Share of each optimizer step's rows with a mismatched partner for `kl`; 0 when the loss has no KL term."""
        return 0.0

    @property
    def reads_steps(self) -> bool:
        """Tell whether `ScoredBatch.steps` must be given."""
        return False

    @property
    def needs_alignment(self) -> bool:
        """Tell whether `ScoredBatch.alignment` must be given."""
        return False

    def sequence_weights(
        self, sequences: Sequence[TokenSequence]
    ) -> Sequence[Sequence[float]] | None:
        """Weight of each scored token of an example's sequences, for all sums of log-probs; None weighs all alike."""
        return None

    def class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        """Weights (lambda_D, lambda_U) for a round with these counts of examples."""
        return 1.0, 1.0

    def step_class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        """Weights of desirable and undesirable steps for a round with these counts of judged steps."""
        return 1.0, 1.0


class ReferencedLoss(Loss):
    """A loss of log-ratios between the policy and a reference."""

    reference_names: ClassVar[tuple[str, ...]] = ("reference",)

    class Config(Loss.Config):
        """Settings that every loss with a reference has."""

        beta: float = Field(default=0.1, gt=0, le=MAX_COEFFICIENT)
        """Strength of the pull to the reference: multiplies log-ratios. Must be above 0."""

    config: Config


class PairLoss(ReferencedLoss):
    """A loss over preference pairs."""

    kind: ClassVar[type[Example]] = PreferencePair

    @property
    def weighs_tokens(self) -> bool:
        """Tell whether `token_weights` must be asked; else every scored token counts 1."""
        return False

    def token_weights(self, sequence: TokenSequence, other: TokenSequence) -> Sequence[float]:
        """Weight of each scored token of `sequence`, in order, when it stands against `other`.

        The log-prob sums of the policy and of the reference are both made with it before they reach `per_pair`;
        lengths stay counts of tokens. [scored tokens]
        """
        return [1.0] * sum(sequence.loss_mask)

    def sequence_weights(
        self, sequences: Sequence[TokenSequence]
    ) -> Sequence[Sequence[float]] | None:
        if not self.weighs_tokens:
            return None
        chosen, rejected = sequences
        return [self.token_weights(chosen, rejected), self.token_weights(rejected, chosen)]

    def per_pair(self, pairs: PairTensors) -> Tensor:
        """Loss of each pair. [B]"""
        raise NotImplementedError

    def losses(self, batch: ScoredBatch) -> Tensor:
        return self.per_pair(PairTensors.of(batch))

    def metrics(self, batch: ScoredBatch) -> dict[str, Tensor]:
        return pair_metrics(PairTensors.of(batch), self.config.beta)

    def trl(self) -> TrlLoss:
        return TrlLoss("sigmoid")


FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class DifferenceLoss(PairLoss):
    """A pair loss of the difference of two scores, so that f-divergence, WPO and LD variants exist."""

    class Config(PairLoss.Config):
        """Settings of the losses for which TRL defines these three variations."""

        f_divergence: FDivergence = "reverse_kl"
        """Divergence to the reference (arXiv 2309.16240); reverse_kl is the usual log-ratio."""
        alpha_divergence_coef: float = Field(default=0.5, ge=-MAX_COEFFICIENT, le=MAX_COEFFICIENT)
        """Order of the alpha divergence; only read when f_divergence is alpha_divergence."""
        use_weighting: bool = False
        """WPO (arXiv 2406.11827): weigh each pair by how likely the policy is to write both sides."""
        ld_alpha: float | None = Field(default=None, ge=0, le=1)
        """LD-DPO (arXiv 2409.06411): weight of tokens beyond the shorter side's length; null or 1 is plain DPO."""

        @model_validator(mode="after")
        def _alpha_only_where_used(self) -> Self:
            if self.f_divergence != "alpha_divergence" and self.alpha_divergence_coef != 0.5:
                raise ValueError(
                    "alpha_divergence_coef is only read with f_divergence: alpha_divergence"
                )
            return self

    config: Config

    @property
    def needs_custom_step(self) -> bool:
        return self.config.f_divergence == "forward_kl"  # TRL's exp(-a) is infinite below a = -88

    @property
    def weighs_tokens(self) -> bool:
        return self.config.ld_alpha is not None

    def token_weights(self, sequence: TokenSequence, other: TokenSequence) -> Sequence[float]:
        own, shared = sum(sequence.loss_mask), sum(other.loss_mask)
        tail = 1.0 if self.config.ld_alpha is None else self.config.ld_alpha
        return [1.0] * min(own, shared) + [tail] * (own - shared)

    @property
    def needs_alignment(self) -> bool:
        return self.config.use_weighting

    def per_pair(self, pairs: PairTensors) -> Tensor:
        chosen, rejected = self.score(pairs.chosen_logratios), self.score(pairs.rejected_logratios)
        loss = self.of_scores(chosen, rejected, pairs)
        if not self.config.use_weighting:
            return loss
        if pairs.alignment is None:
            raise ValueError("use_weighting needs PairTensors.alignment")
        return (
            loss * pairs.alignment.detach().exp()
        )  # Eq. (2) of arXiv 2406.11827, not clamped, as TRL

    def of_scores(self, chosen: Tensor, rejected: Tensor, pairs: PairTensors) -> Tensor:
        """Loss of each pair from its two scores; with reverse KL these are a and b. [B]"""
        raise NotImplementedError

    def score(self, logratios: Tensor) -> Tensor:
        """f'(ratio) of the configured divergence, from the log of the ratio (arXiv 2309.16240, table 1)."""
        kind = self.config.f_divergence
        if kind == "forward_kl":
            return 1 - (-logratios).clamp(max=MAX_EXPONENT).exp()  # f'(t) = 1 - 1/t
        if kind == "js_divergence":
            from torch.nn.functional import logsigmoid

            return math.log(2) + logsigmoid(logratios)  # f'(t) = log(2t / (t + 1))
        order = self.config.alpha_divergence_coef - 1.0
        if kind == "reverse_kl" or abs(order) < 1e-6:  # alpha -> 1 is the reverse KL
            return logratios
        powers = (
            (order * logratios).clamp(max=MAX_EXPONENT).exp()
        )  # f'(t) = (t^(alpha-1) - 1) / (alpha - 1)
        return (powers - 1.0) / order

    def trl_arguments(self) -> dict[str, Any]:
        """The three variations in TRL's names."""
        return {
            "f_divergence_type": self.config.f_divergence,
            "f_alpha_divergence_coef": self.config.alpha_divergence_coef,
            "use_weighting": self.config.use_weighting,
            "ld_alpha": self.config.ld_alpha,
        }


class UnpairedLoss(ReferencedLoss):
    """A loss over single trajectories with a desirable bit."""

    kind: ClassVar[type[Example]] = UnpairedExample

    class Config(ReferencedLoss.Config):
        """Settings that every unpaired loss has."""

        desirable_weight: ClassWeight = Field(default="auto")
        """Weight of desirable examples; auto balances the classes by this round's counts."""
        undesirable_weight: ClassWeight = Field(default="auto")
        """Weight of undesirable examples; auto balances the classes by this round's counts."""

        @model_validator(mode="after")
        def _positive_weights(self) -> Self:
            for name in type(self).model_fields:
                value = getattr(self, name)
                if name.endswith("desirable_weight") and value != "auto" and value <= 0:
                    raise ValueError(f"{name} must be above 0 or 'auto'")
            return self

    config: Config

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        """Loss of each example's outcome, before class weights. [N]"""
        raise NotImplementedError

    def weighted(self, examples: UnpairedTensors, class_weights: tuple[float, float]) -> Tensor:
        """Loss of each example with the weights (lambda_D, lambda_U) of the classes. [N]"""
        import torch

        return self.per_example(examples) * torch.where(examples.desirable, *class_weights)

    def class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        config = self.config
        return balanced_weights(
            config.desirable_weight, config.undesirable_weight, num_desirable, num_undesirable
        )

    def losses(self, batch: ScoredBatch) -> Tensor:
        return self.weighted(UnpairedTensors.of(batch), batch.class_weights)

    def metrics(self, batch: ScoredBatch) -> dict[str, Tensor]:
        return unpaired_metrics(UnpairedTensors.of(batch), self.config.beta)

    def trl(self) -> TrlLoss:
        return TrlLoss("kto" if self.kl_share > 0 else "apo_zero_unpaired")


class SupervisedLoss(Loss):
    """A loss over trajectories to imitate; it has no reference and no beta."""

    kind: ClassVar[type[Example]] = SupervisedExample

    def per_example(self, examples: SupervisedTensors) -> Tensor:
        """Loss of each example; the mean over the rows of an optimizer step is the step's loss. [N]"""
        raise NotImplementedError

    def losses(self, batch: ScoredBatch) -> Tensor:
        return self.per_example(SupervisedTensors.of(batch))

    def metrics(self, batch: ScoredBatch) -> dict[str, Tensor]:
        return {"nll": -batch.logps.detach().sum() / batch.lengths.sum()}

    def trl(self) -> TrlLoss:
        return TrlLoss("nll")


LOSSES = Family("loss", package="policies.objectives.losses", base=Loss)
