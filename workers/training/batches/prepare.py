"""Prepares the input of one update: the plan of its batches, reference sums, and the collator that joins them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING

from policies.examples.kind import Example, LabelledStep, TokenSequence
from policies.objectives.loss import Loss
from workers.training.batches.plan import (
    BatchPlan,
    MismatchedSequence,
    count_kept,
    longest_sides,
    mismatched_sequences,
    plan_batches,
)
from workers.training.batches.reference_logprobs import ReferenceScores, step_sums, weighted_sum
from workers.training.job import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor

    from workers.training.batches.collate import Collator, ReferenceSums

ScoreReference = Callable[[Sequence[TokenSequence]], ReferenceScores]
"""Scores the examples' sequences and the mismatched ones that it is given."""


@dataclass
class Feed:
    """Input of one update's trainer."""

    plan: BatchPlan
    collate: Collator | None
    """None for an engine that computes nothing."""
    class_weights: tuple[float, float] = (1.0, 1.0)
    """Of desirable and undesirable examples."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What is known before the first step: counts, weights, the gap to the sampler."""


def feed_of(
    loss: Loss,
    examples: Sequence[Example],
    options: TrainingOptions,
    *,
    seed: int,
    pad: int,
    score_reference: ScoreReference,
) -> Feed:
    """Plan the batches of `examples` and make their collator.

    Args:
        loss: says what must be summed how, and what else it reads.
        examples: of the loss's kind, all usable.
        options: batch sizes and epochs.
        seed: of the order and of the mismatched partners.
        pad: token id to pad with.
        score_reference: called once; not at all by losses without a reference.
    """
    from workers.training.batches.collate import Collator

    labels = _labels(examples)
    plan = plan_of(examples, options, seed=seed)
    partners = _partners(loss, examples, plan, seed)
    scores = ReferenceScores([], [], {})
    if loss.reference_names:
        scores = score_reference([p.sequence for p in partners])
    borrowed = zip(partners, scores.partners, strict=True)
    weights = loss.class_weights(labels.count(True), labels.count(False))
    step_weights, step_metrics = _step_weights(loss, examples)
    collate = Collator(
        loss,
        examples,
        _reference_sums(loss, examples, scores.sequences),
        mean_lengths_of(examples, plan),
        pad,
        {p.row: (p, _sums(p.sequence, s, None)) for p, s in borrowed},
        weights,
        step_weights,
        plan.means([float(len(_judged_steps(e))) for e in examples]),
    )
    metrics = {**scores.metrics, **count_kept(examples)}
    if labels:
        metrics["train/desirable_weight"], metrics["train/undesirable_weight"] = weights
    return Feed(plan, collate, weights, {**metrics, **step_metrics})


def plan_of(examples: Sequence[Example], options: TrainingOptions, *, seed: int) -> BatchPlan:
    """The batches of an update."""
    labels = _labels(examples)
    return plan_batches(
        longest_sides(examples),
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        epochs=options.epochs,
        seed=seed,
        classes=labels if len(labels) == len(examples) else None,
    )


def _labels(examples: Sequence[Example]) -> list[bool]:
    return [label for e in examples if (label := e.label()) is not None]


def _reference_sums(
    loss: Loss, examples: Sequence[Example], scores: Sequence[Tensor]
) -> list[list[ReferenceSums]]:
    """Sums of each sequence of each example, with the loss's token weights; empty without scores."""
    left = iter(scores)
    found = []
    for example in examples if scores else ():
        sequences = example.sequences()
        weights = loss.sequence_weights(sequences)
        pairs = zip(sequences, weights or repeat(None, len(sequences)), strict=True)
        found.append([_sums(sequence, next(left), each) for sequence, each in pairs])
    return found


def _sums(
    sequence: TokenSequence, scores: Tensor, weights: Sequence[float] | None
) -> ReferenceSums:
    from workers.training.batches.collate import ReferenceSums

    return ReferenceSums(weighted_sum(scores, weights), tuple(step_sums(sequence, scores)))


def mean_lengths_of(examples: Sequence[Example], plan: BatchPlan) -> list[list[float]]:
    """Mean number of scored tokens by slot, over the examples of each optimizer step that have it."""
    lengths = [[s.num_scored for s in e.sequences()] for e in examples]
    found = []
    for step in plan.step_rows:
        most = max(len(lengths[row]) for row in step)
        slots = [[lengths[row][i] for row in step if i < len(lengths[row])] for i in range(most)]
        found.append([sum(values) / len(values) for values in slots])
    return found


def _step_weights(
    loss: Loss, examples: Sequence[Example]
) -> tuple[tuple[float, float] | None, dict[str, float]]:
    """Class weights of the judged steps, for a loss that reads steps, and their counts."""
    if not loss.reads_steps:
        return None, {}
    judged = [_judged_steps(e) for e in examples]
    num_desirable = sum(step.desirable for steps in judged for step in steps)
    num_undesirable = sum(map(len, judged)) - num_desirable
    weights = loss.step_class_weights(num_desirable, num_undesirable)
    return weights, {
        "train/desirable_steps": float(num_desirable),
        "train/undesirable_steps": float(num_undesirable),
        "train/desirable_step_weight": weights[0],
        "train/undesirable_step_weight": weights[1],
        "train/without_judged_steps": float(sum(not steps for steps in judged)),
    }


def _judged_steps(example: Example) -> list[LabelledStep]:
    return [s for q in example.sequences() for s in q.steps if any(q.loss_mask[s.start : s.end])]


def _partners(
    loss: Loss, examples: Sequence[Example], plan: BatchPlan, seed: int
) -> list[MismatchedSequence]:
    if loss.kl_share == 0:
        return []
    # Rows of a step are alike, so the first ones do. By step: another micro_batch_size must not choose others.
    rows = {row for step in plan.step_rows for row in step[: math.ceil(loss.kl_share * len(step))]}
    return list(mismatched_sequences(examples, sorted(rows), seed=seed).values())
