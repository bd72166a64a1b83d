"""The accept phase: keep the new version or roll back, and sum the round up for the journal.

*Consumes* the round's phases. *Produces* a `RoundResult`. *On failure*: nothing to undo; deciding again
from the same measurements decides the same.
"""

from __future__ import annotations

from orchestrator.rounds.metrics import collection_metrics, training_metrics
from orchestrator.rounds.phases import Collected, Evaluated, Trained
from orchestrator.rounds.publishing import sync
from orchestrator.run import RoundScope
from policies.files import remove_tree
from policies.records import PolicyVersion, RoundResult, RoundStatus

HEADLINE = "eval/pass@1"
"""The metric that tells `improved` from `kept`."""


def measure_untrained(scope: RoundScope, measured: Evaluated) -> RoundResult:
    """Round 0: the policy as it came."""
    return RoundResult(
        round=0,
        status=RoundStatus.UNTRAINED,
        before=scope.policy.number,
        after=scope.policy.number,
        reference="none",
        metrics=measured.metrics,
    )


def finish_unchanged(scope: RoundScope, collected: Collected, trained: Trained) -> RoundResult:
    """A round without an update, or with one that diverged: the policy stays, its last measurement still holds."""
    remove_tree(scope.folder.checkpoints)
    last = scope.run.journal.results()[-1]
    held_out = {k: v for k, v in last.metrics.items() if k.startswith("eval/")}
    abandoned = {"train/nonfinite_steps": 1.0} if trained.diverged else {}
    status = RoundStatus.DIVERGED if trained.diverged else RoundStatus.SKIPPED
    return RoundResult(
        round=scope.index,
        status=status,
        before=scope.policy.number,
        after=scope.policy.number,
        reference=str(trained.reference),
        reason=f"{status.value}: {trained.skipped_because}",
        metrics=collection_metrics(collected) | abandoned | held_out,
    )


def accept(
    scope: RoundScope,
    collected: Collected,
    trained: Trained,
    candidate: PolicyVersion,
    measured: Evaluated,
) -> RoundResult:
    """Decide on the candidate; when it is refused the samplers serve the old version again."""
    run = scope.run
    remove_tree(scope.folder.checkpoints)
    best = serving_metrics(scope)
    decision = run.acceptance.decide(measured.metrics, best)
    if decision.accepted:
        rose = measured.metrics.get(HEADLINE, 0.0) > best.get(HEADLINE, 0.0)
        status = RoundStatus.IMPROVED if rose else RoundStatus.KEPT
    else:
        status = RoundStatus.REJECTED
        sync(scope, scope.policy)
    return RoundResult(
        round=scope.index,
        status=status,
        before=scope.policy.number,
        after=candidate.number if decision.accepted else scope.policy.number,
        reference=f"{trained.reference} (log-probs: {trained.logprobs})",
        reason=decision.reason,
        metrics=collection_metrics(collected) | training_metrics(trained) | measured.metrics,
    )


def serving_metrics(scope: RoundScope) -> dict[str, float]:
    """Held-out metrics of the version that serves: those of the round that published it."""
    for result in reversed(scope.run.journal.results()):
        if result.after == scope.policy.number and result.status is not RoundStatus.REJECTED:
            return {k: v for k, v in result.metrics.items() if k.startswith("eval/")}
    return {}
