"""Prepares the input of one update: the plan of its batches, reference sums, and the collator that joins them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from policies.examples.kinds import (
    Example,
    LabelledStep,
    PreferencePair,
    SupervisedExample,
    TokenSequence,
    UnpairedExample,
)
from policies.objectives.loss import Loss, PairLoss, SupervisedLoss, UnpairedLoss
from workers.training.batches.plan import (
    BatchPlan,
    MismatchedSequence,
    mismatched_sequences,
    plan_batches,
    sequences_of,
)
from workers.training.batches.reference_logprobs import ReferenceScores, step_sums, weighted_sum
from workers.training.engine import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor

    from workers.training.batches.collate import ReferenceSums

ScoreReference = Callable[[Sequence[TokenSequence]], ReferenceScores]
"""Scores the examples' sequences and the mismatched ones that it is given."""


@dataclass
class Feed:
    """Input of one update's trainer."""

    plan: BatchPlan
    collate: Any
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
        loss: says what kind of example it is, and what must be summed how.
        examples: of the loss's kind, all usable.
        options: batch sizes and epochs.
        seed: of the order and of the mismatched partners.
        pad: token id to pad with.
        score_reference: called once; not at all by losses without a reference.
    """
    if isinstance(loss, PairLoss):
        pairs = cast("Sequence[PreferencePair]", examples)
        return _of_pairs(loss, pairs, options, seed, pad, score_reference)
    if isinstance(loss, UnpairedLoss):
        singles = cast("Sequence[UnpairedExample]", examples)
        return _of_singles(loss, singles, options, seed, pad, score_reference)
    assert isinstance(loss, SupervisedLoss)
    return _of_demonstrations(cast("Sequence[SupervisedExample]", examples), options, seed, pad)


def longest_sides(examples: Sequence[Example]) -> list[int]:
    """Tokens of the longest sequence of each example."""
    return [max(len(s.token_ids) for s in sequences_of(e)) for e in examples]


def _plan(
    examples: Sequence[Example],
    options: TrainingOptions,
    seed: int,
    classes: Sequence[bool] | None = None,
) -> BatchPlan:
    return plan_batches(
        longest_sides(examples),
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        epochs=options.epochs,
        seed=seed,
        classes=classes,
    )


def _of_pairs(
    loss: PairLoss,
    pairs: Sequence[PreferencePair],
    options: TrainingOptions,
    seed: int,
    pad: int,
    score_reference: ScoreReference,
) -> Feed:
    from workers.training.batches.collate import PairCollator

    def total(scores: Tensor, own: TokenSequence, other: TokenSequence) -> float:
        weights = loss.token_weights(own, other) if loss.weighs_tokens else None
        return weighted_sum(scores, weights)

    scored = score_reference([])
    sides = zip(pairs, scored.sequences[::2], scored.sequences[1::2], strict=True)
    sums = [
        (total(chosen, p.chosen, p.rejected), total(rejected, p.rejected, p.chosen))
        for p, chosen, rejected in sides
    ]
    plan = _plan(pairs, options, seed)
    lengths = plan.means([float(sum(p.chosen.loss_mask)) for p in pairs])
    return Feed(
        plan=plan,
        collate=PairCollator(loss, pairs, sums, lengths, pad),
        metrics={**scored.metrics, "train/pairs": float(len(pairs))},
    )


def _of_singles(
    loss: UnpairedLoss,
    examples: Sequence[UnpairedExample],
    options: TrainingOptions,
    seed: int,
    pad: int,
    score_reference: ScoreReference,
) -> Feed:
    from workers.training.batches.collate import UnpairedCollator

    desirable = [e.desirable for e in examples]
    plan = _plan(examples, options, seed, desirable)
    partners = _partners(loss, examples, plan, seed)
    scored = score_reference([p.sequence for p in partners])
    num_desirable = sum(desirable)
    num_undesirable = len(examples) - num_desirable
    weights = loss.class_weights(num_desirable, num_undesirable)
    step_weights, step_metrics = _step_weights(loss, examples)
    collate = UnpairedCollator(
        examples,
        [_sums(e.sequence, s) for e, s in zip(examples, scored.sequences, strict=True)],
        {p.row: (p, _sums(p.sequence, s)) for p, s in zip(partners, scored.partners, strict=True)},
        pad,
        step_weights,
        plan.means([float(len(_judged_steps(e.sequence))) for e in examples]),
    )
    metrics = {
        "train/desirable": float(num_desirable),
        "train/undesirable": float(num_undesirable),
        "train/desirable_weight": weights[0],
        "train/undesirable_weight": weights[1],
    }
    return Feed(plan, collate, weights, {**scored.metrics, **metrics, **step_metrics})


def _sums(sequence: TokenSequence, scores: Tensor) -> ReferenceSums:
    from workers.training.batches.collate import ReferenceSums

    return ReferenceSums(weighted_sum(scores), tuple(step_sums(sequence, scores)))


def _step_weights(
    loss: UnpairedLoss, examples: Sequence[UnpairedExample]
) -> tuple[tuple[float, float] | None, dict[str, float]]:
    """Class weights of the judged steps, for a loss that reads steps, and their counts."""
    if not loss.reads_steps:
        return None, {}
    judged = [_judged_steps(e.sequence) for e in examples]
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


def _judged_steps(sequence: TokenSequence) -> list[LabelledStep]:
    return [s for s in sequence.steps if any(sequence.loss_mask[s.start : s.end])]


def _partners(
    loss: UnpairedLoss, examples: Sequence[UnpairedExample], plan: BatchPlan, seed: int
) -> list[MismatchedSequence]:
    if loss.kl_share == 0:
        return []
    # Rows of a step are alike, so the first ones do. By step: another micro_batch_size must not choose others.
    rows = {row for step in plan.step_rows for row in step[: math.ceil(loss.kl_share * len(step))]}
    return list(mismatched_sequences(examples, sorted(rows), seed=seed).values())


def _of_demonstrations(
    examples: Sequence[SupervisedExample], options: TrainingOptions, seed: int, pad: int
) -> Feed:
    from workers.training.batches.collate import SupervisedCollator

    plan = _plan(examples, options, seed)
    lengths = [float(sum(e.sequence.loss_mask)) for e in examples]
    return Feed(
        plan=plan,
        collate=SupervisedCollator(examples, plan.means(lengths), pad),
        metrics={"train/demonstrations": float(len(examples))},
    )
