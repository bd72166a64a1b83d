"""The rounds of a run: draw, collect, train, publish, sync, evaluate, accept; again until done."""

from __future__ import annotations

from orchestrator.rounds.accepting import (
    Candidate,
    accept,
    decide,
    finish_unchanged,
    measure_untrained,
    serving_after,
    wanted_again,
)
from orchestrator.rounds.collecting import collect
from orchestrator.rounds.context import RoundScope, Run
from orchestrator.rounds.disk import check_room, warn_about_room
from orchestrator.rounds.drawing import draw
from orchestrator.rounds.evaluating import evaluate, measure_again, measure_finally, num_shards
from orchestrator.rounds.limits import is_last, reason_to_stop
from orchestrator.rounds.phase_runner import phase
from orchestrator.rounds.publishing import sync
from orchestrator.rounds.recording import record_round
from orchestrator.rounds.repair import intact_candidate, publish_intact, ready_to_train
from orchestrator.rounds.retention import keep_what_is_wanted
from orchestrator.rounds.updating import update
from orchestrator.runs.leftovers import remove_attempts
from orchestrator.runs.phases import (
    Collected,
    Drawn,
    Evaluated,
    Phase,
    Published,
    Remeasured,
    Synced,
    Trained,
)
from policies.base.records import RoundResult, RoundStatus


def run_rounds(run: Run) -> str:
    """Improve the policy round by round, from wherever the journal left off; returns why it ended."""
    warn_about_room(run)
    while (index := run.journal.next_round()) <= run.config.rounds:
        keep_what_is_wanted(run)
        check_room(run)
        result = run_round(RoundScope(run, index, run.policy()))
        remove_attempts(run.folder.round(index))
        record_round(run, result)
        if stop := reason_to_stop(run.journal.results(), run.config.limits):
            return stop
    keep_what_is_wanted(run)
    return f"all {run.config.rounds} rounds are done"


def run_round(scope: RoundScope) -> RoundResult:
    """One round. Round 0 only measures the policy as it came."""
    drawn = phase(scope, Phase.DRAW, Drawn, draw)
    shards = num_shards(scope)
    if scope.index == 0:
        measured = phase(
            scope, Phase.EVALUATE, Evaluated, lambda s: evaluate(s, s.policy), shards=shards
        )
        final = _measure_start(scope)
        return phase(
            scope, Phase.ACCEPT, RoundResult, lambda s: measure_untrained(s, measured, final)
        )
    collected = phase(
        scope, Phase.COLLECT, Collected, lambda s: collect(s, drawn), shards=drawn.num_shards
    )
    trained = phase(
        scope, Phase.TRAIN, Trained, lambda s: update(s, ready_to_train(s, drawn, collected))
    )
    if trained.outcome is None:
        status = RoundStatus.DIVERGED if trained.diverged else RoundStatus.SKIPPED
        final = _measure_end(scope, status, scope.policy.number)
        return phase(
            scope,
            Phase.ACCEPT,
            RoundResult,
            lambda s: finish_unchanged(s, collected, trained, final),
        )
    published = phase(
        scope, Phase.PUBLISH, Published, lambda s: publish_intact(s, collected, trained)
    )
    candidate = intact_candidate(scope, collected, published)
    phase(scope, Phase.SYNC, Synced, lambda s: sync(s, candidate))
    measured = phase(
        scope, Phase.EVALUATE, Evaluated, lambda s: evaluate(s, candidate), shards=shards
    )
    again = None
    if versions := wanted_again(scope, measured):
        again = phase(scope, Phase.COMPARE, Remeasured, lambda s: measure_again(s, versions))
    decision = decide(scope, measured, again)
    status = RoundStatus.KEPT if decision.accepted else RoundStatus.REJECTED
    final = _measure_end(scope, status, serving_after(scope, candidate, decision))
    return phase(
        scope,
        Phase.ACCEPT,
        RoundResult,
        lambda s: accept(s, collected, trained, Candidate(candidate, measured, again, final)),
    )


def _measure_start(scope: RoundScope) -> Remeasured | None:
    """The policy as it came on `prompts.test`, where there are any."""
    if not scope.run.test_prompts:
        return None
    return phase(scope, Phase.FINAL, Remeasured, lambda s: measure_finally(s, s.policy))


def _measure_end(scope: RoundScope, status: RoundStatus, serving: int) -> Remeasured | None:
    """The version that serves at the end of the run, measured where no decision looks."""
    if not is_last(scope, status) or not (scope.run.test_prompts or scope.acceptance.selects):
        return None
    version = scope.run.store.get(serving)
    return phase(scope, Phase.FINAL, Remeasured, lambda s: measure_finally(s, version))
