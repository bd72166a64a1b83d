"""The accept phase: keep the new version or roll back, and sum the round up for the journal.

*Consumes* the round's phases and every earlier measurement. *Produces* a `RoundResult`. *On failure*: nothing to undo;
deciding again from the same measurements decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.acceptance.measurement import Evidence, Measurement, difference
from orchestrator.acceptance.rule import Decision
from orchestrator.acceptance.statistics import is_clearly_above
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.evidence import gather, rejected_in_a_row, usable, why_unusable
from orchestrator.rounds.metrics import collection_metrics, training_metrics
from orchestrator.rounds.publishing import sync
from orchestrator.runs.phases import Collected, Evaluated, Phase, Remeasured, Trained
from policies.base.records import PolicyVersion, RoundResult, RoundStatus
from policies.storage.files import remove_tree

HEADLINE = "eval/pass@1"
"""The metric that tells `improved` from `kept`."""
CONFIDENCE = 0.9
"""How sure a rise of it must be to be called `improved`; one-sided."""
WARN_AFTER = 2
"""Rejected rounds in a row that are worth a warning."""


def measure_untrained(
    scope: RoundScope, measured: Evaluated, final: Remeasured | None
) -> RoundResult:
    """Round 0: the policy as it came."""
    return RoundResult(
        round=0,
        status=RoundStatus.UNTRAINED,
        before=scope.policy.number,
        after=scope.policy.number,
        reference="none",
        metrics=measured.metrics | serving_metrics(measured.metrics) | final_metrics(final),
    )


def finish_unchanged(
    scope: RoundScope, collected: Collected, trained: Trained, final: Remeasured | None
) -> RoundResult:
    """A round without an update, or with one that diverged: the policy stays, what was measured of it still holds."""
    remove_tree(scope.folder.checkpoints)
    last = scope.run.journal.results()[-1]
    held_out = _standing(scope)
    abandoned = {"train/nonfinite_steps": 1.0} if trained.diverged else {}
    status = RoundStatus.DIVERGED if trained.diverged else RoundStatus.SKIPPED
    return RoundResult(
        round=scope.index,
        status=status,
        before=scope.policy.number,
        after=scope.policy.number,
        reference=str(trained.reference),
        reason=f"{status.value}: {trained.skipped_because}",
        metrics=collection_metrics(collected)
        | abandoned
        | held_out
        | serving_metrics(held_out)
        | final_metrics(final),
        best=last.best,
    )


def decide(scope: RoundScope, measured: Evaluated, again: Remeasured | None) -> Decision:
    """Keep the candidate or not; a measurement that lacks too much decides nothing."""
    if not usable(scope, measured):
        return Decision(accepted=True, reason=why_unusable(scope, measured))
    evidence = _evidence(scope, measured, again)
    decision = scope.acceptance.decide(evidence)
    back_to = decision.back_to
    if decision.accepted or back_to is None or back_to == scope.policy.number:
        return replace(decision, back_to=None)
    if back_to not in evidence.known():
        raise ValueError(f"the acceptance rule goes back to version {back_to}, which cannot serve")
    return replace(decision, reason=f"{decision.reason}; back to version {back_to}")


def wanted_again(scope: RoundScope, measured: Evaluated) -> tuple[int, ...]:
    """Versions that the rule wants measured once more before it decides."""
    if not usable(scope, measured):
        return ()
    evidence = _evidence(scope, measured, None)
    known = {*evidence.known(), measured.version}
    wanted = scope.acceptance.measure_again(evidence)
    return tuple(number for number in dict.fromkeys(wanted) if number in known)


def serving_after(scope: RoundScope, candidate: PolicyVersion, decision: Decision) -> int:
    """The version that serves after a decision."""
    if decision.accepted:
        return candidate.number
    return scope.policy.number if decision.back_to is None else decision.back_to


@dataclass(frozen=True)
class Candidate:
    """A new version and all that was measured on the way to a decision on it."""

    version: PolicyVersion
    measured: Evaluated
    again: Remeasured | None
    final: Remeasured | None


def accept(
    scope: RoundScope, collected: Collected, trained: Trained, candidate: Candidate
) -> RoundResult:
    """Decide on the candidate; when it is refused the samplers serve an older version again."""
    measured, again, final = candidate.measured, candidate.again, candidate.final
    remove_tree(scope.folder.checkpoints)
    decision = decide(scope, measured, again)
    after = serving_after(scope, candidate.version, decision)
    if not decision.accepted or again is not None or final is not None:
        sync(scope, scope.run.store.get(after))
    evidence = _evidence(scope, measured, again)
    compared = difference(evidence.candidate, evidence.serving, HEADLINE)
    found: dict[str, float] = {}
    if compared is not None:
        found["eval/difference"] = compared.value
        found |= {} if compared.error is None else {"eval/difference_se": compared.error}
    serves: Measurement = evidence.candidate if decision.accepted else evidence.known()[after]
    if not decision.accepted:
        _warn_of_stall(scope)
    return RoundResult(
        round=scope.index,
        status=_status(decision, evidence, usable(scope, measured)),
        before=scope.policy.number,
        after=after,
        reference=f"{trained.reference} (log-probs: {trained.logprobs})",
        reason=decision.reason,
        metrics=collection_metrics(collected)
        | training_metrics(scope.index, trained)
        | measured.metrics
        | found
        | serving_metrics(serves.metrics)
        | final_metrics(final),
        best=decision.best,
    )


def _status(decision: Decision, evidence: Evidence, counts: bool) -> RoundStatus:
    if not decision.accepted:
        return RoundStatus.REJECTED
    compared = difference(evidence.candidate, evidence.serving, HEADLINE) if counts else None
    clear = compared is not None and is_clearly_above(compared, 0.0, CONFIDENCE)
    return RoundStatus.IMPROVED if clear else RoundStatus.KEPT


def _evidence(scope: RoundScope, measured: Evaluated, again: Remeasured | None) -> Evidence:
    return gather(scope, measured, () if again is None else again.measurements.values())


def _standing(scope: RoundScope) -> dict[str, float]:
    """Held-out metrics of the version that serves, over all its measurements."""
    for result in reversed(scope.run.journal.results()):
        measured = scope.run.journal.find(result.round, Phase.EVALUATE, Evaluated)
        if measured is not None:
            serving = gather(scope, measured).serving
            return {k: v for k, v in serving.items() if k.startswith("eval/")}
    return {}


def serving_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """`serving/pass@1` and its standard error: of the version that serves then, all measurements together."""
    names = (HEADLINE, f"{HEADLINE}_se")
    return {n.replace("eval/", "serving/"): metrics[n] for n in names if n in metrics}


def final_metrics(final: Remeasured | None) -> dict[str, float]:
    """`final/...` or `test/...`: what was measured where no decision looks."""
    if final is None:
        return {}
    return {
        metric.replace("eval/", f"{name}/"): value
        for name, measured in final.measurements.items()
        for metric, value in measured.metrics.items()
    }


def _warn_of_stall(scope: RoundScope) -> None:
    in_a_row = rejected_in_a_row(scope) + 1
    if in_a_row < WARN_AFTER:
        return
    limit = scope.run.config.limits.max_rejected_rounds
    scope.run.events.warn(
        f"round {scope.index}: {in_a_row} rounds in a row were rejected (the run ends after {limit}, "
        "limits.max_rejected_rounds). Fix: more prompts a round (prompts.per_round) or a lower training.learning_rate; "
        "more held-out prompts tell small gains from noise",
        round_index=scope.index,
    )
