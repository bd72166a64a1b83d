"""Reference log-probs of a round, from the sampler or from a pass of the trainer, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policies.errors import TrainingError, explain
from policies.examples import TokenSequence
from policies.seeds import derive_rng
from workers.training.engine import UpdateJob

if TYPE_CHECKING:
    from torch import Tensor


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
    policy_model: Any,
    load_reference: Callable[[], Any],
    precision: str,
    probe: int,
) -> ReferenceScores:
    """Score all sequences under the reference of `job`.

    Args:
        job: says which versions the reference is made of, and where log-probs come from.
        sequences: of the examples.
        partners: mismatched sequences; the sampler never saw them, so they always need a pass.
        policy_model: the policy before training.
        load_reference: loads the reference as a model of its own, when it is not the policy.
        precision: of the forward pass, as in training.
        probe: how many sequences the trainer scores besides, to compare it with the sampler.
    """
    import torch

    from policies.logprobs import sequence_logprobs

    is_policy = job.reference.single == job.policy.number
    if job.logprobs == "rollout":
        check_recorded(job, sequences)
        recorded = [torch.tensor(_scored_only(s)) for s in sequences]
        own = sequence_logprobs(policy_model, partners, precision=precision).per_token
        gap = _probe(job, sequences, policy_model, precision, probe)
        return ReferenceScores(recorded, own, gap)
    model = policy_model if is_policy else load_reference()
    unique = {(s.token_ids, s.loss_mask): i for i, s in enumerate(sequences)}
    rows = sorted(unique.values())
    scores = sequence_logprobs(
        model, [sequences[row] for row in rows], precision=precision
    ).per_token
    by_row = dict(zip(rows, scores, strict=True))
    scored = [by_row[unique[s.token_ids, s.loss_mask]] for s in sequences]
    scored_partners = sequence_logprobs(model, partners, precision=precision).per_token
    if is_policy:
        gap = gap_metrics(job.policy.number, sequences, scored)
    else:
        gap = _probe(job, sequences, policy_model, precision, probe)
    return ReferenceScores(scored, scored_partners, gap)


def check_recorded(job: UpdateJob, sequences: Sequence[TokenSequence]) -> None:
    """Refuse the sampler's log-probs where they are not the reference's.

    Raises:
        TrainingError: the reference is not the policy, or some sequences were sampled by another version.
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
    stale = sorted({s.policy_version for s in sequences} - {number})
    if stale:
        raise TrainingError(
            explain(
                f"the sampler's log-probs of some sequences are not those of the reference, version {number}",
                value=f"sampled by versions {stale}",
                where="training.reference.logprobs",
                fix="set it to recompute, or train on this round's samples only",
            )
        )


def _scored_only(sequence: TokenSequence) -> list[float]:
    return [
        value for value, scored in zip(sequence.logprobs, sequence.loss_mask, strict=True) if scored
    ]


def _probe(
    job: UpdateJob, sequences: Sequence[TokenSequence], model: Any, precision: str, count: int
) -> dict[str, float]:
    from policies.logprobs import sequence_logprobs

    fresh = [s for s in sequences if s.policy_version == job.policy.number]
    chosen = derive_rng(job.seed, "probe").sample(fresh, min(count, len(fresh)))
    if not chosen:
        return {}
    return gap_metrics(
        job.policy.number, chosen, sequence_logprobs(model, chosen, precision=precision).per_token
    )


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
        if s.policy_version == number
    ]
    if not gaps:
        return {}
    return {
        "health/logprob_gap": float(torch.cat(gaps).mean()),
        "health/logprob_gap_max": max(float(gap.mean()) for gap in gaps),
    }


def tail_weighted_sum(scores: Tensor, other_length: int, tail_weight: float | None) -> float:
    """Sum of a sequence's log-probs; tokens beyond `other_length` count `tail_weight` (LD-DPO)."""
    values = scores.double()
    if tail_weight is None:
        return float(values.sum())
    return float(values[:other_length].sum() + tail_weight * values[other_length:].sum())
