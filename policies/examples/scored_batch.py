"""The scores of tokens, and the scored batch: all that a loss sees of a microbatch, whatever its kind of example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """Scores of a model for the next tokens of a batch; 0 wherever the mask is 0.

    Everything is [N, T-1]: column t speaks of token t+1.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    """Entropy of the distribution that the token was drawn from, in nats; no gradient."""
    top1: Tensor | None = None
    """Whether the token was the likeliest one. bool"""
    mean_logits: Tensor | None = None
    log_sum_squares: Tensor | None = None
    """log of the sum of squared probabilities (for WPO); no gradient."""

    @property
    def sums(self) -> Tensor:
        """Log-prob of each sequence's scored tokens. [N]"""
        return self.log_probs.sum(dim=1)


@dataclass(frozen=True)
class StepTensors:
    """The judged steps of a batch's sequences, S in all, already summed; S may be 0."""

    logratios: Tensor  # [S] over the scored tokens of the step
    rows: Tensor  # [S] long: the sequence that the step belongs to
    desirable: Tensor  # [S] bool
    weights: Tensor  # [S] class weight of the step's label
    kl: Tensor  # [] mean log-ratio of the judged steps of mismatched completions, without gradient, >= 0
    mean_per_example: Tensor | None = None
    """Mean number of judged steps of an example over the optimizer step, for a mean over all of its steps. []"""


@dataclass(frozen=True)
class ScoredBatch:
    """A microbatch of B examples with S sequences in all, already summed; all of the step's with `across_rows`.

    Sequences come slot by slot: the first of every example, then the second of every example that has one, and so on.
    """

    logps: Tensor  # [S] log-probs of the policy
    references: Mapping[str, Tensor]  # [S] each: log-probs of the references that the loss names
    lengths: Tensor  # [S] scored tokens
    owners: Tensor  # [S] long: the example that the sequence belongs to
    sizes: tuple[int, ...]
    """Number of sequences by slot."""
    weights: Tensor  # [B] what each example's loss is multiplied with, afterwards
    kl: Tensor
    """KL(policy || reference) from mismatched completions of the whole step, without gradient, >= 0; 0 unless the loss
    has a `kl_share`. []"""
    mean_lengths: Tensor
    """Mean number of scored tokens by slot, over all examples of the optimizer step that have it. [slots]"""
    values: Mapping[str, Tensor]  # [B] each: the numbers of the kind, by field
    labels: Tensor | None = None  # [B] bool, of a kind with labels
    scores: Tensor | None = None  # [S] of a kind whose sequences have scores
    alignment: Tensor | None = None
    """Log of the WPO weight of each sequence, without gradient; of a loss that `needs_alignment`. [S]"""
    steps: StepTensors | None = None
    """Of a loss that `reads_steps`."""
    class_weights: tuple[float, float] = (1.0, 1.0)
    """Of desirable and undesirable examples."""

    @property
    def num_examples(self) -> int:
        return len(self.weights)

    @property
    def slots(self) -> Tensor:
        """Place of each sequence among those of its example. [S] long"""
        import torch

        sizes = torch.tensor(self.sizes, device=self.owners.device)
        return torch.arange(len(self.sizes), device=self.owners.device).repeat_interleave(sizes)

    def logratios(self, name: str = "reference") -> Tensor:
        """Log-prob of the policy less that of a reference. [S]"""
        return self.logps - self.references[name]

    def of_slot(self, values: Tensor, slot: int) -> Tensor:
        """Those of `values` [S] that belong to sequences of one slot; [B] where every example has it."""
        found: Tensor = values.split(self.sizes)[slot]
        return found

    def table(self, values: Tensor, missing: float) -> Tensor:
        """`values` [S] by example and slot; `missing` where an example has no such sequence. [B, slots]"""
        empty = values.new_full((self.num_examples, len(self.sizes)), missing)
        return empty.index_put((self.owners, self.slots), values)

    def with_live(self, part: ScoredBatch, places: Sequence[int]) -> ScoredBatch:
        """The batch with what the policy says of some sequences, those of `part`, at `places`, with their gradient."""
        import torch

        at = torch.tensor(places, device=self.owners.device)
        alignment = self.alignment
        if alignment is not None and part.alignment is not None:
            alignment = alignment.index_put((at,), part.alignment)
        logps = self.logps.index_put((at,), part.logps)
        return replace(self, logps=logps, alignment=alignment)

    def example(self, index: int) -> ScoredBatch:
        """One example of the batch alone; with its judged steps, where it has one sequence."""
        import torch

        own = self.owners == index
        steps = self.steps
        if steps is not None:
            judged = own[steps.rows]
            steps = replace(
                steps,
                logratios=steps.logratios[judged],
                rows=torch.zeros_like(steps.rows[judged]),
                desirable=steps.desirable[judged],
                weights=steps.weights[judged],
            )
        at = slice(index, index + 1)
        return replace(
            self,
            logps=self.logps[own],
            references={name: values[own] for name, values in self.references.items()},
            lengths=self.lengths[own],
            owners=torch.zeros_like(self.owners[own]),
            sizes=tuple(int(own.split(self.sizes)[i].sum()) for i in range(len(self.sizes))),
            weights=self.weights[at],
            values={name: values[at] for name, values in self.values.items()},
            labels=None if self.labels is None else self.labels[at],
            scores=None if self.scores is None else self.scores[own],
            alignment=None if self.alignment is None else self.alignment[own],
            steps=steps,
        )
