"""Deals with a sampler and a trainer that disagree on the log-probs of the same tokens (`health/logprob_gap`).

Up to about 0.02 nats a token is rounding. More means that the two do not compute the same policy: then the sampler's
log-probs are not those of the reference, and the first gradient is that of the disagreement.
"""

from __future__ import annotations

from orchestrator.rounds.context import RoundScope
from orchestrator.runs.phases import Phase, Trained
from policies.base.errors import LimitExceededError, explain
from workers.training.engine import UpdateOutcome


def must_recompute(scope: RoundScope, outcome: UpdateOutcome, source: str, forced: bool) -> bool:
    """Tell whether the update has to be made again with reference log-probs that the trainer computes; warns.

    Args:
        scope: the round.
        outcome: of the update that measured the gap.
        source: `rollout` or `recompute`: where the reference log-probs came from.
        forced: they were recomputed because of an earlier gap.

    Raises:
        LimitExceededError: the gap is above `limits.max_logprob_gap` and the run is to end then.
    """
    limits, gap = scope.run.config.limits, outcome.metrics.get("health/logprob_gap")
    if gap is None or gap <= limits.warn_logprob_gap:
        return False
    text = (
        f"round {scope.index}: sampler and trainer are {gap:.3f} nats a token apart on the same tokens "
        "(health/logprob_gap; rounding makes about 0.01): they do not compute the same policy"
    )
    again = gap > limits.max_logprob_gap and source == "rollout"
    if gap > limits.max_logprob_gap and not forced:
        if limits.on_logprob_gap == "refuse" or source == "recompute":
            raise LimitExceededError(
                explain(
                    text,
                    value=round(gap, 3),
                    where=f"limits.max_logprob_gap ({limits.max_logprob_gap:g})",
                    fix="compare policy.dtype and rollout.engine; `rollout.engine={type: transformers}` samples with"
                    " the trainer's own code; or raise the limit",
                )
            )
        text += "; the update is made again with log-probs that the trainer computes"
    scope.run.events.warn(text, round_index=scope.index)
    return again


def was_forced(scope: RoundScope) -> bool:
    """Tell whether an earlier round had to recompute its reference log-probs because of the gap."""
    found = (scope.run.journal.find(i, Phase.TRAIN, Trained) for i in range(1, scope.index))
    return any(trained.forced for trained in found if trained is not None)
