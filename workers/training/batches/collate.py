"""Rows into the tensors that TRL's trainers read, with masks from who wrote the tokens and reference sums beside them.

Imports torch: import this module inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.examples.kinds import (
    PreferencePair,
    SupervisedExample,
    TokenSequence,
    UnpairedExample,
)
from policies.objectives.logprobs import padded
from policies.objectives.loss import PairLoss
from workers.training.batches.plan import MicroBatch, MismatchedSequence


@dataclass(frozen=True)
class PairCollator:
    """Microbatches of pairs: chosen rows first, then rejected ones, as TRL's DPO loss expects. [2B, T]"""

    loss: PairLoss
    pairs: Sequence[PreferencePair]
    references: Sequence[tuple[float, float]]
    """Reference sums of chosen and rejected, per pair, made with the loss's token weights."""
    mean_lengths: Sequence[float]
    """Mean number of scored tokens of a chosen side, by optimizer step."""
    pad: int

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        pairs = [self.pairs[row] for row in batch.rows]
        sides = [(p.chosen, p.rejected) for p in pairs] + [(p.rejected, p.chosen) for p in pairs]
        ids, attention, mask = padded([own for own, _ in sides], self.pad)
        sums = torch.tensor([self.references[row] for row in batch.rows])
        tensors = {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": mask,
            "ref_chosen_logps": sums[:, 0],
            "ref_rejected_logps": sums[:, 1],
            "soft_labels": torch.tensor([p.soft_label for p in pairs]),
            "mean_chosen_length": torch.tensor(self.mean_lengths[batch.step]),
            "rows": torch.tensor(batch.rows),
            "weights": torch.tensor([p.weight for p in pairs]),
            "share": batch.share,
        }
        if self.loss.weighs_tokens:
            tensors["token_weights"] = spread_weights(
                mask, [self.loss.token_weights(own, other) for own, other in sides]
            )
        return tensors


def spread_weights(mask: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Weights of scored tokens, given in order for each row, at their positions; 0 elsewhere. [N, T] float"""
    flat = torch.tensor([value for row in weights for value in row])
    return torch.zeros(mask.shape).masked_scatter(mask.bool(), flat)


@dataclass(frozen=True)
class ReferenceSums:
    """Reference log-probs of one sequence, summed over its scored tokens and over those of each judged step."""

    total: float
    steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class UnpairedCollator:
    """Microbatches of single examples, with mismatched sequences for some of the rows. [N, T] and [K, T]"""

    examples: Sequence[UnpairedExample]
    references: Sequence[ReferenceSums]
    partners: Mapping[int, tuple[MismatchedSequence, ReferenceSums]]
    """Mismatched sequence and its reference sums, by row; for KTO every optimizer step holds such a row."""
    pad: int
    step_weights: tuple[float, float] | None = None
    """Class weights of desirable and undesirable steps, for a loss that reads steps."""
    mean_steps: Sequence[float] = ()
    """Mean number of judged steps of an example, by optimizer step."""

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        examples = [self.examples[row] for row in batch.rows]
        sequences = [e.sequence for e in examples]
        references = [self.references[row] for row in batch.rows]
        ids, attention, mask = padded(sequences, self.pad)
        tensors: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": mask,
            "label": torch.tensor([e.desirable for e in examples]),
            "ref_logps": torch.tensor([r.total for r in references]),
            "weights": torch.tensor([e.weight for e in examples]),
            "rows": torch.tensor(batch.rows),
            "share": batch.share,
        }
        if self.step_weights is not None:
            tensors["steps"] = step_batch(sequences, references, self.step_weights)
            tensors["steps"]["mean_per_example"] = torch.tensor(self.mean_steps[batch.step])
        # A row that is repeated to fill a step (share 0) has been counted where it belongs.
        counted = batch.rows if batch.share else ()
        partners = [self.partners[row] for row in counted if row in self.partners]
        if partners:
            others, sums = [p.sequence for p, _ in partners], [s for _, s in partners]
            kl_ids, kl_attention, kl_mask = padded(others, self.pad)
            tensors["KL_input_ids"] = kl_ids
            tensors["KL_attention_mask"] = kl_attention
            tensors["KL_completion_mask"] = kl_mask
            tensors["ref_KL_logps"] = torch.tensor([s.total for s in sums])
            if self.step_weights is not None:
                tensors["KL_steps"] = step_batch(others, sums, self.step_weights)
        return tensors


def step_batch(
    sequences: Sequence[TokenSequence],
    references: Sequence[ReferenceSums],
    class_weights: tuple[float, float],
) -> dict[str, Tensor]:
    """Tell where the judged steps of a microbatch lie, and what is known of them. S steps, M scored tokens in them.

    Returns:
        `rows`, `desirable`, `weights`, `references` of each step [S]; and for each scored token in a step, its row, its
        column among the next-token log-probs (one less than its position) and its step: `token_rows`,
        `token_columns`, `token_steps` [M].
    """
    rows: list[int] = []
    desirable: list[bool] = []
    sums: list[float] = []
    tokens: list[tuple[int, int, int]] = []
    for row, (sequence, reference) in enumerate(zip(sequences, references, strict=True)):
        for step, total in zip(sequence.steps, reference.steps, strict=True):
            scored = [i for i in range(step.start, step.end) if sequence.loss_mask[i]]
            if (
                not scored
            ):  # a step that both sides of something share, or that lies outside the mask
                continue
            tokens.extend((row, position - 1, len(rows)) for position in scored)
            rows.append(row)
            desirable.append(step.desirable)
            sums.append(total)
    places = torch.tensor(tokens, dtype=torch.long).view(-1, 3)
    labels = torch.tensor(desirable, dtype=torch.bool)
    return {
        "rows": torch.tensor(rows, dtype=torch.long),
        "desirable": labels,
        "weights": torch.where(labels, *class_weights),
        "references": torch.tensor(sums),
        "token_rows": places[:, 0],
        "token_columns": places[:, 1],
        "token_steps": places[:, 2],
    }


@dataclass(frozen=True)
class SupervisedCollator:
    """Microbatches of examples to imitate. [N, T]"""

    examples: Sequence[SupervisedExample]
    mean_lengths: Sequence[float]
    """Mean number of scored tokens of an example, by optimizer step."""
    pad: int

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        examples = [self.examples[row] for row in batch.rows]
        ids, attention, mask = padded([e.sequence for e in examples], self.pad)
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": mask,
            "mean_length": torch.tensor(self.mean_lengths[batch.step]),
            "rows": torch.tensor(batch.rows),
            "weights": torch.tensor([e.weight for e in examples]),
            "share": batch.share,
        }
