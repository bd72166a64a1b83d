"""Losses as pure functions of summed log-probs, and the tensors they read.

Notation (all float32): `a = chosen_logps - ref_chosen_logps`, `b` likewise for rejected, `h = a - b`.
A log-prob sum runs over the tokens that the policy wrote, i.e. where the loss mask is 1; with several turns that is
every turn of the policy and no observation, which makes DPO the M-DPO, and KTO the M-KTO, of arXiv 2409.02392.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from policies.base.bounds import MAX_COEFFICIENT
from policies.base.component import Component, Family
from policies.examples.kinds import ExampleKind, TokenSequence
from policies.objectives.formulas import trl_spells

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

MAX_EXPONENT = 80.0
"""exp() of more than 88 is infinite in float32; exponents are cut here, as TRL does for alpha divergences."""


@dataclass(frozen=True)
class PairTensors:
    """A microbatch of B preference pairs, already summed; all pairs of the step for a loss with `across_rows`."""

    chosen_logps: Tensor  # [B]
    rejected_logps: Tensor  # [B]
    ref_chosen_logps: Tensor  # [B]
    ref_rejected_logps: Tensor  # [B]
    chosen_lengths: Tensor  # [B] scored tokens
    rejected_lengths: Tensor  # [B]
    alignment: Tensor | None = None
    """Log of the WPO weight of each pair, without gradient; needed only with `use_weighting`. [B]"""
    soft_labels: Tensor | None = None
    """Probability that the chosen side is really better; needed only with `soft_labels`. [B]"""
    mean_chosen_length: Tensor | None = None
    """Mean of `chosen_lengths` over all pairs of the optimizer step, for a mean over the step's chosen tokens. []"""

    @property
    def chosen_logratios(self) -> Tensor:
        """A [B]."""
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        """B [B]."""
        return self.rejected_logps - self.ref_rejected_logps

    @property
    def margins(self) -> Tensor:
        """H = a - b [B]."""
        return self.chosen_logratios - self.rejected_logratios


@dataclass(frozen=True)
class StepTensors:
    """The judged steps of a microbatch's examples, S in all, already summed; S may be 0."""

    logratios: Tensor  # [S] over the scored tokens of the step
    rows: Tensor  # [S] long: the example that the step belongs to
    desirable: Tensor  # [S] bool
    weights: Tensor  # [S] class weight of the step's label
    kl: Tensor  # [] mean log-ratio of the judged steps of mismatched completions, without gradient, >= 0
    mean_per_example: Tensor | None = None
    """Mean number of judged steps of an example over the optimizer step, for a mean over all of its steps. []"""


@dataclass(frozen=True)
class UnpairedTensors:
    """A microbatch of N unpaired examples, already summed."""

    logps: Tensor  # [N]
    ref_logps: Tensor  # [N]
    desirable: Tensor  # [N] bool
    kl: Tensor  # [] KL(policy || reference) from mismatched completions of the whole step, without gradient, >= 0
    steps: StepTensors | None = None
    """Needed only by losses that read steps."""

    @property
    def logratios(self) -> Tensor:
        """R [N]."""
        return self.logps - self.ref_logps


@dataclass(frozen=True)
class SupervisedTensors:
    """A microbatch of N examples to imitate, already summed."""

    logps: Tensor  # [N]
    lengths: Tensor  # [N] scored tokens
    mean_length: Tensor
    """Mean of `lengths` over all rows of the optimizer step: makes a mean over tokens out of a mean over rows. []"""


@dataclass(frozen=True)
class TrlLoss:
    """TRL's spelling of a loss: `loss_type` and further arguments of its `DPOConfig`, `KTOConfig` or `SFTConfig`."""

    loss_type: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Loss(Component):
    """A training objective over one kind of example.

    It is computed for one microbatch at a time, so the loss of a row must depend on nothing but that row and what is
    given for the whole optimizer step (`kl`, the mean lengths); `across_rows` is for losses of which that is not true.
    """

    kind: ClassVar[ExampleKind]
    across_rows: ClassVar[bool] = False
    """Whether the loss of a row depends on other rows (sorts them, compares with their mean). Such a loss is always
    given all rows of the optimizer step: with several microbatches or workers that costs a second forward pass."""

    class Config(Component.Config):
        """Settings that every loss has: none."""

    config: Config

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
        raise NotImplementedError


class ReferencedLoss(Loss):
    """A loss of log-ratios between the policy and a reference."""

    class Config(Loss.Config):
        """Settings that every loss with a reference has."""

        beta: float = Field(default=0.1, gt=0, le=MAX_COEFFICIENT)
        """Strength of the pull to the reference: multiplies log-ratios. Must be above 0."""

    config: Config


class PairLoss(ReferencedLoss):
    """A loss over preference pairs."""

    kind: ClassVar[ExampleKind] = "pair"

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

    @property
    def needs_alignment(self) -> bool:
        """Tell whether `PairTensors.alignment` must be given."""
        return False

    def per_pair(self, pairs: PairTensors) -> Tensor:
        """Loss of each pair. [B]"""
        raise NotImplementedError

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


ClassWeight = Annotated[float, Field(ge=0, le=MAX_COEFFICIENT)] | Literal["auto"]


class UnpairedLoss(ReferencedLoss):
    """A loss over single trajectories with a desirable bit."""

    kind: ClassVar[ExampleKind] = "unpaired"

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

    @property
    def kl_share(self) -> float:
        """Share of each optimizer step's rows with a mismatched partner for `kl`; 0 when the loss has no KL term."""
        return 0.0

    @property
    def reads_steps(self) -> bool:
        """Tell whether `UnpairedTensors.steps` must be given."""
        return False

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        """Loss of each example's outcome, before class weights. [N]"""
        raise NotImplementedError

    def weighted(self, examples: UnpairedTensors, class_weights: tuple[float, float]) -> Tensor:
        """Loss of each example with the weights (lambda_D, lambda_U) of the classes. [N]"""
        import torch

        return self.per_example(examples) * torch.where(examples.desirable, *class_weights)

    def class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        """Weights (lambda_D, lambda_U) for a round with these counts of examples."""
        config = self.config
        return balanced_weights(
            config.desirable_weight, config.undesirable_weight, num_desirable, num_undesirable
        )

    def step_class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        """Weights of desirable and undesirable steps for a round with these counts of judged steps."""
        return 1.0, 1.0

    def trl(self) -> TrlLoss:
        return TrlLoss("kto" if self.kl_share > 0 else "apo_zero_unpaired")


def balanced_weights(
    desirable_weight: ClassWeight,
    undesirable_weight: ClassWeight,
    num_desirable: int,
    num_undesirable: int,
) -> tuple[float, float]:
    """Weights (lambda_D, lambda_U) of two classes with these counts.

    `auto` keeps lambda_D n_D / (lambda_U n_U) within [1, 4/3] (arXiv 2402.01306, section 4.3): nothing changes
    inside, the smaller class is raised to the nearer end outside, the other stays at 1.

    Example: 10 desirable and 100 undesirable give (10.0, 1.0); 40 and 10 give (1.0, 3.0).
    """
    auto_desirable, auto_undesirable = desirable_weight == "auto", undesirable_weight == "auto"
    desirable = 1.0 if auto_desirable else float(desirable_weight)
    undesirable = 1.0 if auto_undesirable else float(undesirable_weight)
    if num_desirable == 0 or num_undesirable == 0:  # one class alone: there is nothing to balance
        return desirable, undesirable
    ratio = desirable * num_desirable / (undesirable * num_undesirable)
    wanted = min(max(ratio, 1.0), 4.0 / 3.0)
    raise_desirable = wanted > ratio if auto_desirable and auto_undesirable else auto_desirable
    if raise_desirable:
        return desirable * wanted / ratio, undesirable
    if auto_undesirable:
        return desirable, undesirable * ratio / wanted
    return desirable, undesirable


class SupervisedLoss(Loss):
    """A loss over trajectories to imitate; it has no reference and no beta."""

    kind: ClassVar[ExampleKind] = "supervised"

    def per_example(self, examples: SupervisedTensors) -> Tensor:
        """Loss of each example; the mean over the rows of an optimizer step is the step's loss. [N]"""
        raise NotImplementedError

    def trl(self) -> TrlLoss:
        return TrlLoss("nll")


LOSSES = Family("loss", package="policies.objectives.losses", base=Loss)
