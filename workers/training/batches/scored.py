"""From next-token log-probs to the scored batch that a loss reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from policies.examples.scored_batch import ScoredBatch, StepTensors

if TYPE_CHECKING:
    from torch import Tensor


def scored_batch(
    log_probs: Tensor,
    scored: Tensor,
    facts: Mapping[str, Any],
    *,
    weights: Tensor | None = None,
    log_sum_squares: Tensor | None = None,
    kl: Tensor | None = None,
    steps: StepTensors | None = None,
) -> ScoredBatch:
    """Sum the token log-probs of a microbatch.

    Args:
        log_probs: of the next tokens, 0 where unscored; sequences slot by slot. [S, T-1]
        scored: 1 where a token is scored. [S, T-1]
        facts: the rest of what the batch says, as `Collator.facts` gives it.
        weights: of scored tokens, as the reference sums were made with; None weighs all alike. [S, T-1]
        log_sum_squares: log of the sum of squared probabilities, for WPO. [S, T-1]
        kl: the reference point of the step; None is 0. []
        steps: of a loss that reads them.
    """
    alignment = None
    if log_sum_squares is not None:  # mean over tokens of log p - log sum p^2
        aligned = ((log_probs - log_sum_squares).detach() * scored).sum(dim=1)
        alignment = aligned / scored.sum(dim=1).clamp(min=1)
    return ScoredBatch(
        logps=(log_probs if weights is None else log_probs * weights).sum(dim=1),
        alignment=alignment,
        kl=log_probs.new_zeros(()) if kl is None else kl,
        steps=steps,
        **facts,
    )


def step_tensors(log_probs: Tensor, steps: dict[str, Tensor], kl: Tensor) -> StepTensors:
    """Return what a step loss reads, from next-token log-probs and the collator's `step_batch`.

    Args:
        log_probs: of the next tokens, 0 where unscored. [N, T-1]
        steps: see `workers.training.batches.collate.step_batch`.
        kl: the steps' reference point. []
    """
    return StepTensors(
        logratios=step_logratios(log_probs, steps),
        rows=steps["rows"],
        desirable=steps["desirable"],
        weights=steps["weights"],
        kl=kl,
        mean_per_example=steps.get("mean_per_example"),
    )


def step_logratios(log_probs: Tensor, steps: dict[str, Tensor]) -> Tensor:
    """Log-ratio of each judged step: the sum over its scored tokens, less the reference's. [S]"""
    references = steps["references"].to(log_probs.dtype)
    values = log_probs[steps["token_rows"], steps["token_columns"]]
    return (-references).index_add(0, steps["token_steps"], values)
