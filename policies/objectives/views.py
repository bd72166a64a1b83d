"""Views of a scored batch in the words of the three kinds that ship: what their losses read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.examples.scored_batch import ScoredBatch, StepTensors

if TYPE_CHECKING:
    from torch import Tensor


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

    @classmethod
    def of(cls, batch: ScoredBatch) -> PairTensors:
        """The batch of a kind with two sequences, chosen before rejected."""
        chosen, rejected = (batch.of_slot(batch.logps, slot) for slot in (0, 1))
        reference = batch.references["reference"]
        alignment = batch.alignment
        if alignment is not None:
            alignment = batch.of_slot(alignment, 0) + batch.of_slot(alignment, 1)
        return cls(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=batch.of_slot(reference, 0),
            ref_rejected_logps=batch.of_slot(reference, 1),
            chosen_lengths=batch.of_slot(batch.lengths, 0),
            rejected_lengths=batch.of_slot(batch.lengths, 1),
            alignment=alignment,
            soft_labels=batch.values.get("soft_label"),
            mean_chosen_length=batch.mean_lengths[0],
        )

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
    kl: Tensor  # [] KL(policy || reference) from mismatched completions of the whole step, without gradient, >= 0
    steps: StepTensors | None = None
    """Needed only by losses that read steps."""

    @classmethod
    def of(cls, batch: ScoredBatch) -> UnpairedTensors:
        """The batch of a kind with one sequence and a label."""
        assert batch.labels is not None
        reference = batch.references["reference"]
        return cls(batch.logps, reference, batch.labels, batch.kl, batch.steps)

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

    @classmethod
    def of(cls, batch: ScoredBatch) -> SupervisedTensors:
        """The batch of a kind with one sequence."""
        return cls(batch.logps, batch.lengths, batch.mean_lengths[0])


def pair_metrics(pairs: PairTensors, beta: float) -> dict[str, Tensor]:
    """Rewards and log-probs of both sides, under TRL's names."""
    chosen, rejected = (
        beta * pairs.chosen_logratios.detach(),
        beta * pairs.rejected_logratios.detach(),
    )
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
        "logps/chosen": pairs.chosen_logps.mean(),
        "logps/rejected": pairs.rejected_logps.mean(),
    }


def unpaired_metrics(examples: UnpairedTensors, beta: float) -> dict[str, Tensor]:
    """Rewards and log-probs of both classes, as far as the microbatch has them, under TRL's names."""
    desirable, steps = examples.desirable, examples.steps
    rewards = beta * examples.logratios.detach()
    found = {"kl": examples.kl}
    found |= _by_class("rewards", rewards, desirable)
    found |= _by_class("logps", examples.logps.detach(), desirable)
    if bool(desirable.any()) and not bool(desirable.all()):
        found["rewards/margins"] = rewards[desirable].mean() - rewards[~desirable].mean()
    if steps is not None:
        found["steps/kl"] = steps.kl
        found |= _by_class("steps/logratios", steps.logratios.detach(), steps.desirable)
    return found


def _by_class(name: str, values: Tensor, desirable: Tensor) -> dict[str, Tensor]:
    classes = {"chosen": desirable, "rejected": ~desirable}
    return {f"{name}/{side}": values[rows].mean() for side, rows in classes.items() if rows.any()}
