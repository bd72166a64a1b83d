"""Rows into tensors: token ids, masks from who wrote the tokens, and all that a loss is told beside log-probs.

Imports torch: import this module inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.examples.kind import Example, TokenSequence
from policies.objectives.logprobs import padded
from policies.objectives.loss import Loss
from workers.training.batches.plan import MicroBatch, MismatchedSequence


@dataclass(frozen=True)
class ReferenceSums:
    """Reference log-probs of one sequence, summed over its scored tokens and over those of each judged step."""

    total: float
    steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Collator:
    """Microbatches of examples of any kind, their sequences slot by slot, as in a `ScoredBatch`. [S, T]"""

    loss: Loss
    examples: Sequence[Example]
    references: Sequence[Sequence[ReferenceSums]]
    """Of each sequence of each example, made with the loss's token weights; empty without a reference."""
    mean_lengths: Sequence[Sequence[float]]
    """Mean number of scored tokens by slot, of each optimizer step."""
    pad: int
    partners: Mapping[int, tuple[MismatchedSequence, ReferenceSums]]
    """Mismatched sequence and its reference sums, by row; for KTO every optimizer step holds such a row."""
    class_weights: tuple[float, float] = (1.0, 1.0)
    step_weights: tuple[float, float] | None = None
    """Class weights of desirable and undesirable steps, for a loss that reads steps."""
    mean_steps: Sequence[float] = ()
    """Mean number of judged steps of an example, by optimizer step."""

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask` and `completion_mask` [S, T], the `rows`, `step` and `share` of the
        microbatch, and `facts` for its `ScoredBatch`; as the loss needs them, `token_weights` [S, T], `steps` (see
        `step_batch`) and `mismatched` sequences with the same tensors and their `references`.
        """
        places = self.places(batch.rows)
        sequences = [self.examples[row].sequences()[slot] for row, slot in places]
        tensors = _tokens(sequences, self.pad)
        tensors |= {
            "facts": self.facts(batch.rows, batch.step),
            "rows": batch.rows,
            "step": batch.step,
            "share": batch.share,
        }
        by_row = {
            row: self.loss.sequence_weights(self.examples[row].sequences()) for row in batch.rows
        }
        weights = [of_row[slot] for row, slot in places if (of_row := by_row[row]) is not None]
        if weights:
            tensors["token_weights"] = spread_weights(tensors["completion_mask"], weights)
        if self.step_weights is not None:
            sums = [self.references[row][slot] for row, slot in places]
            tensors["steps"] = step_batch(sequences, sums, self.step_weights)
            tensors["steps"]["mean_per_example"] = torch.tensor(self.mean_steps[batch.step])
        # A row that is repeated to fill a step (share 0) has been counted where it belongs.
        counted = batch.rows if batch.share else ()
        partners = [self.partners[row] for row in counted if row in self.partners]
        if partners:
            others, sums = [p.sequence for p, _ in partners], [s for _, s in partners]
            mismatched = _tokens(others, self.pad)
            mismatched["references"] = torch.tensor([s.total for s in sums])
            if self.step_weights is not None:
                mismatched["steps"] = step_batch(others, sums, self.step_weights)
            tensors["mismatched"] = mismatched
        return tensors

    def places(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Row and slot of each sequence of `rows`, slot by slot."""
        counts = {row: len(self.examples[row].sequences()) for row in rows}
        most = max(counts.values())
        return [(row, slot) for slot in range(most) for row in rows if slot < counts[row]]

    def facts(self, rows: Sequence[int], step: int) -> dict[str, Any]:
        """Return what a `ScoredBatch` of `rows` says without any log-prob of the policy."""
        examples, places = [self.examples[row] for row in rows], self.places(rows)
        place = {row: i for i, row in enumerate(rows)}
        slots = [slot for _, slot in places]
        facts: dict[str, Any] = {
            "references": {
                name: torch.tensor([self.references[row][slot].total for row, slot in places])
                for name in self.loss.reference_names
            },
            "lengths": torch.tensor(
                [self.examples[row].sequences()[slot].num_scored for row, slot in places]
            ),
            "owners": torch.tensor([place[row] for row, _ in places]),
            "sizes": tuple(slots.count(slot) for slot in range(max(slots) + 1)),
            "weights": torch.tensor([e.weight for e in examples]),
            "mean_lengths": torch.tensor(self.mean_lengths[step]),
            "values": {
                name: torch.tensor([float(getattr(e, name)) for e in examples])
                for name in examples[0].number_names()
            },
            "class_weights": self.class_weights,
        }
        labels, scores = [e.label() for e in examples], [e.scores() for e in examples]
        if None not in labels:
            facts["labels"] = torch.tensor(labels)
        if None not in scores:
            of_row = dict(zip(rows, scores, strict=True))
            facts["scores"] = torch.tensor([(of_row[row] or ())[slot] for row, slot in places])
        return facts


def moved(tensors: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The same, nested mappings too, with every tensor on `device`."""

    def place(value: Any) -> Any:
        if isinstance(value, Mapping):
            return moved(value, device)
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: place(value) for name, value in tensors.items()}


def _tokens(sequences: Sequence[TokenSequence], pad: int) -> dict[str, Any]:
    ids, attention, mask = padded(sequences, pad)
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}


def spread_weights(mask: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Weights of scored tokens, given in order for each row, at their positions; 0 elsewhere. [N, T] float"""
    flat = torch.tensor([value for row in weights for value in row])
    return torch.zeros(mask.shape).masked_scatter(mask.bool(), flat)


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
