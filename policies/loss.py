"""Losses as pure functions of summed log-probs, and the tensors they read.

Notation (all float32): `a = chosen_logps - ref_chosen_logps`, `b` likewise for rejected, `h = a - b`.
A log-prob sum runs over the tokens that the policy wrote, i.e. where the loss mask is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from policies.component import Component, Family
from policies.examples import ExampleKind

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

MAX_EXPONENT = 80.0
"""exp() of more than 88 is infinite in float32; exponents are cut here, as TRL does for alpha divergences."""


@dataclass(frozen=True)
class PairTensors:
    """A microbatch of B preference pairs, already summed."""

    chosen_logps: Tensor  # [B]
    rejected_logps: Tensor  # [B]
    ref_chosen_logps: Tensor  # [B]
    ref_rejected_logps: Tensor  # [B]
    chosen_lengths: Tensor  # [B] scored tokens
    rejected_lengths: Tensor  # [B]
    alignment: Tensor | None = None
    """Log of the WPO weight of each pair, without gradient; needed only with `use_weighting`. [B]"""

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
class UnpairedTensors:
    """A microbatch of N unpaired examples, already summed."""

    logps: Tensor  # [N]
    ref_logps: Tensor  # [N]
    desirable: Tensor  # [N] bool
    kl: Tensor  # [] estimate of KL(policy || reference) from mismatched completions, without gradient, >= 0

    @property
    def logratios(self) -> Tensor:
        """R [N]."""
        return self.logps - self.ref_logps


@dataclass(frozen=True)
class TrlLoss:
    """How TRL spells a loss: `loss_type` and further arguments of its `DPOConfig` or `KTOConfig`."""

    loss_type: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Loss(Component):
    """A training objective over one kind of example."""

    kind: ClassVar[ExampleKind]

    class Config(Component.Config):
        """Settings that every loss has."""

        beta: float = Field(default=0.1, gt=0)
        """Strength of the pull to the reference: multiplies log-ratios. Must be above 0."""

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs_custom_step(self) -> bool:
        """Whether an engine must compute with our formula because TRL has no (safe) spelling of it."""
        return False

    def trl(self) -> TrlLoss:
        """The same objective in TRL's own terms, for the TRL engine and the parity tests.

        With `needs_custom_step` it is the nearest objective that TRL accepts: the engine then uses it only to
        configure the trainer around our formula.
        """
        raise NotImplementedError


class PairLoss(Loss):
    """A loss over preference pairs."""

    kind: ClassVar[ExampleKind] = "pair"

    @property
    def tail_weight(self) -> float | None:
        """Weight in the log-prob sums of tokens beyond the shorter side's length; None weighs all alike.

        Policy and reference sums are made with it before they reach `per_pair`.
        """
        return None

    @property
    def needs_alignment(self) -> bool:
        """Whether `PairTensors.alignment` must be given."""
        return False

    def per_pair(self, pairs: PairTensors) -> Tensor:
        """Loss of each pair. [B]"""
        raise NotImplementedError


FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class DifferenceLoss(PairLoss):
    """A pair loss of the difference of two scores, so that f-divergence, WPO and LD variants exist."""

    class Config(PairLoss.Config):
        """Settings of the losses for which TRL defines these three variations."""

        f_divergence: FDivergence = "reverse_kl"
        """Divergence to the reference (arXiv 2309.16240); reverse_kl is the usual log-ratio."""
        alpha_divergence_coef: float = 0.5
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
    def tail_weight(self) -> float | None:
        return self.config.ld_alpha

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


class UnpairedLoss(Loss):
    """A loss over single trajectories with a desirable bit."""

    kind: ClassVar[ExampleKind] = "unpaired"

    class Config(Loss.Config):
        """Settings that every unpaired loss has."""

        desirable_weight: float | Literal["auto"] = Field(default="auto")
        """Weight of desirable examples; auto balances the classes by this round's counts."""
        undesirable_weight: float | Literal["auto"] = Field(default="auto")
        """Weight of undesirable examples; auto balances the classes by this round's counts."""

        @model_validator(mode="after")
        def _positive_weights(self) -> Self:
            for name in ("desirable_weight", "undesirable_weight"):
                value = getattr(self, name)
                if value != "auto" and value <= 0:
                    raise ValueError(f"{name} must be above 0 or 'auto'")
            return self

    config: Config

    @property
    def kl_share(self) -> float:
        """Share of each microbatch's rows that get a mismatched partner for `kl`; 0 when the loss has no KL term."""
        return 0.0

    def per_example(self, examples: UnpairedTensors) -> Tensor:
        """Loss of each example, before class weights. [N]"""
        raise NotImplementedError

    def class_weights(self, num_desirable: int, num_undesirable: int) -> tuple[float, float]:
        """Weights (lambda_D, lambda_U) for a round with these counts.

        `auto` keeps lambda_D n_D / (lambda_U n_U) within [1, 4/3] (arXiv 2402.01306, section 4.3): nothing changes
        inside, the smaller class is raised to the nearer end outside, the other stays at 1.

        Example: 10 desirable and 100 undesirable give (10.0, 1.0); 40 and 10 give (1.0, 3.0).
        """
        auto_desirable = self.config.desirable_weight == "auto"
        auto_undesirable = self.config.undesirable_weight == "auto"
        desirable = 1.0 if auto_desirable else float(self.config.desirable_weight)
        undesirable = 1.0 if auto_undesirable else float(self.config.undesirable_weight)
        if (
            num_desirable == 0 or num_undesirable == 0
        ):  # one class alone: there is nothing to balance
            return desirable, undesirable
        ratio = desirable * num_desirable / (undesirable * num_undesirable)
        wanted = min(max(ratio, 1.0), 4.0 / 3.0)
        raise_desirable = wanted > ratio if auto_desirable and auto_undesirable else auto_desirable
        if raise_desirable:
            return desirable * wanted / ratio, undesirable
        if auto_undesirable:
            return desirable, undesirable * ratio / wanted
        return desirable, undesirable


LOSSES = Family("loss", package="policies.losses", base=Loss)
