"""Reference log-probs of a round, from the sampler or from a pass of the trainer, and how far the two are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policies.base.errors import TrainingError, explain
from policies.base.seeds import derive_rng
from policies.examples.kinds import TokenSequence
from workers.cluster.heartbeat import report_progress
from workers.training.distributed.process_group import WorkerGroup
from workers.training.job import TrainingOptions, UpdateJob

if TYPE_CHECKING:
    from torch import Tensor


Scorer = Callable[[Sequence[TokenSequence]], "list[Tensor]"]
"""Gives the log-prob of each scored token of each sequence, in order. [scored tokens] each"""


@dataclass(frozen=True)
class ReferenceScores:
    """Reference log-probs of the scored tokens of each sequence, in the order given."""

    sequences: list[Tensor]
    partners: list[Tensor]
    """Of the mismatched sequences (KTO)."""
    metrics: dict[str, float]


def score_reference(
    job: UpdateJob,
    sequences: Sequence[TokenSequence],
    partners: Sequence[TokenSequence],
    *,
    sampled: Sequence[TokenSequence],
    policy: Scorer,
    load_reference: Callable[[], Scorer],
    probe: int,
    group: WorkerGroup,
) -> ReferenceScores:
    """Score all sequences under the reference of `job`.

    Args:
        job: says which versions the reference is made of, and where log-probs come from.
        sequences: of the examples.
        partners: mismatched sequences; the sampler never saw them, so they need a pass, and then all sequences get
            one: r and z0 of KTO are compared, and the sampler's log-probs are some hundredths of a nat a token apart.
        sampled: `sequences` with the masks that they were sampled with, which say what has a recorded log-prob.
        policy: the policy before training, in the precision of training.
        load_reference: loads the reference as a model of its own, when it is not the policy.
        probe: how many sequences the trainer scores besides, to compare it with the sampler.
        group: the workers that share the passes.
    """
    is_policy = job.reference.single == job.policy.number
    if job.logprobs == "rollout":
        check_recorded(job)
    if job.logprobs == "rollout" and not partners:
        values, metrics = _recorded(job, sequences, lambda rest: _once_each(policy, rest, group))
        gap = _probe(job, sampled, policy, probe)
        return ReferenceScores(values, [], {**gap, **metrics})
    score = policy if is_policy else load_reference()
    values = _once_each(score, sequences, group)
    own = _once_each(score, partners, group)
    if is_policy and sequences == sampled:  # then they are the trainer's log-probs to compare
        gap = gap_metrics(job.policy.number, sequences, values)
    else:
        gap = _probe(job, sampled, policy, probe)
    return ReferenceScores(values, own, gap)


def scorer(model: Any, precision: str) -> Scorer:
    """Score with a causal language model of transformers."""
    from policies.objectives.logprobs import sequence_logprobs

    return lambda sequences: (
        sequence_logprobs(model, sequences, precision=precision, on_batch=told).per_token
    )


def told(rows: int) -> None:
    """Report sequences that were scored."""
    report_progress(scored_sequences=rows)


def _once_each(
    score: Scorer, sequences: Sequence[TokenSequence], group: WorkerGroup
) -> list[Tensor]:
    """Log-probs of `sequences`; equal ones (a winner of several pairs) are scored once, by one of the workers."""
    import torch

    unique = {(s.token_ids, s.loss_mask): i for i, s in enumerate(sequences)}
    rows = sorted(unique.values())
    own = rows[group.rank :: group.size]
    by_row = dict(zip(own, score([sequences[row] for row in own]), strict=True))
    lengths = [sum(sequences[row].loss_mask) for row in rows]
    if group.size > 1:
        parts = [
            by_row[row].cpu().float() if row in by_row else torch.zeros(length)
            for row, length in zip(rows, lengths, strict=True)
        ]
        whole = group.filled(torch.cat(parts)) if parts else torch.zeros(0)
        by_row = dict(zip(rows, whole.split(lengths), strict=True))
    return [by_row[unique[s.token_ids, s.loss_mask]] for s in sequences]


def _recorded(
    job: UpdateJob,
    sequences: Sequence[TokenSequence],
    score: Callable[[Sequence[TokenSequence]], list[Tensor]],
) -> tuple[list[Tensor], dict[str, float]]:
    """The sampler's log-probs, and a pass for what others wrote, with the number of such sequences."""
    import torch

    stale = [i for i, s in enumerate(sequences) if not _is_own(s, job.policy.number)]
    passed = dict(zip(stale, score([sequences[i] for i in stale]), strict=True))
    values = [
        passed[i] if i in passed else torch.tensor(_scored_only(s)) for i, s in enumerate(sequences)
    ]
    return values, {"train/rescored_sequences": float(len(stale))}


def _is_own(sequence: TokenSequence, number: int) -> bool:
    """Tell whether version `number` sampled the sequence: only then are the recorded log-probs that version's."""
    return sequence.policy_version == number and bool(sequence.logprobs)


def check_recorded(job: UpdateJob) -> None:
    """Refuse the sampler's log-probs where they are not the reference's.

    Sequences that an earlier version sampled (mixture sampling, replay) or that others wrote are no reason: those get a
    pass of the policy.

    Raises:
        TrainingError: the reference is not the policy that sampled.
    """
    number = job.policy.number
    if job.reference.single != number:
        raise TrainingError(
            explain(
                f"the sampler's log-probs are those of version {number}, and the reference is another",
                value=str(job.reference),
                where="training.reference.logprobs",
                fix="set it to recompute",
            )
        )


def check_mask(job: UpdateJob, options: TrainingOptions) -> None:
    """Refuse the sampler's log-probs for tokens that it did not write.

    Raises:
        TrainingError: `loss_mask: completion` with `logprobs: rollout`.
    """
    if options.loss_mask == "completion" and job.logprobs == "rollout":
        raise TrainingError(
            explain(
                "with loss_mask: completion observations are scored too, and the sampler has no log-probs of them",
                value=job.logprobs,
                where="training.loss_mask and training.reference.logprobs",
                fix="set reference.logprobs to recompute, or loss_mask to policy, which is right",
            )
        )


def _scored_only(sequence: TokenSequence) -> list[float]:
    return [
        value for value, scored in zip(sequence.logprobs, sequence.loss_mask, strict=True) if scored
    ]


def _probe(
    job: UpdateJob, sequences: Sequence[TokenSequence], score: Scorer, count: int
) -> dict[str, float]:
    fresh = [s for s in sequences if _is_own(s, job.policy.number)]
    chosen = derive_rng(job.seed, "probe").sample(fresh, min(count, len(fresh)))
    if not chosen:
        return {}
    return gap_metrics(job.policy.number, chosen, score(chosen))


def gap_metrics(
    number: int, sequences: Sequence[TokenSequence], scores: Sequence[Tensor]
) -> dict[str, float]:
    """Distance between the trainer's and the sampler's log-probs, in nats per token, of what version `number` sampled.

    About 0.01 is the noise of bfloat16; much more means that sampler and trainer do not hold the same model.
    """
    import torch

    gaps = [
        (score.double() - torch.tensor(_scored_only(s), dtype=torch.float64)).abs()
        for s, score in zip(sequences, scores, strict=True)
        if _is_own(s, number)
    ]
    if not gaps:
        return {}
    return {
        "health/logprob_gap": float(torch.cat(gaps).mean()),
        "health/logprob_gap_max": max(float(gap.mean()) for gap in gaps),
    }


def weighted_sum(scores: Tensor, weights: Sequence[float] | None = None) -> float:
    """Sum of a sequence's log-probs, in float64, each times its weight; None weighs all alike."""
    import torch

    values = scores.double()
    if weights is not None:
        values = values * torch.tensor(weights, dtype=torch.float64)
    return float(values.sum())


def step_sums(sequence: TokenSequence, scores: Tensor) -> list[float]:
    """Sum of the log-probs of each judged step's scored tokens, in float64."""
    positions = [i for i, scored in enumerate(sequence.loss_mask) if scored]
    values = scores.double().tolist()
    return [
        math.fsum(
            value
            for position, value in zip(positions, values, strict=True)
            if step.start <= position < step.end
        )
        for step in sequence.steps
    ]
