"""Scored batches from token log-probs, made by the code that training uses, for tests of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from policies.examples.kind import Example
from policies.objectives.loss import Loss, PairTensors
from workers.training.batches.collate import Collator, ReferenceSums
from workers.training.batches.plan import MicroBatch
from workers.training.batches.scored import scored_batch


def pair_tensors(
    log_probs: Tensor,
    scored: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    weights: Tensor | None = None,
    log_sum_squares: Tensor | None = None,
    soft_labels: Tensor | None = None,
) -> PairTensors:
    """All pairs of a step as their losses read them; chosen rows first. [2B, T-1] and [B]"""
    count, lengths = len(ref_chosen), scored.sum(dim=1)
    facts: dict[str, Any] = {
        "references": {"reference": torch.cat([ref_chosen, ref_rejected])},
        "lengths": lengths,
        "owners": torch.arange(count).repeat(2),
        "sizes": (count, count),
        "weights": torch.ones(count),
        "mean_lengths": lengths.float().view(2, count).mean(dim=1),
        "values": {} if soft_labels is None else {"soft_label": soft_labels},
    }
    return PairTensors.of(
        scored_batch(log_probs, scored, facts, weights=weights, log_sum_squares=log_sum_squares)
    )


def collated(
    loss: Loss,
    examples: Sequence[Example],
    references: Sequence[Sequence[float]],
    mean_lengths: Sequence[float],
    batch: MicroBatch,
) -> Mapping[str, Any]:
    """A microbatch of one optimizer step as training's collator makes it, with these reference sums by sequence."""
    sums = [[ReferenceSums(value) for value in each] for each in references]
    return Collator(loss, examples, sums, [mean_lengths], 0, {})(batch)
