"""The rounds of a run: draw, collect, train, publish, sync, evaluate, accept; again until done."""

from __future__ import annotations

from orchestrator.disk import check_room, warn_about_room
from orchestrator.leftovers import remove_attempts
from orchestrator.retention import keep_what_is_wanted
from orchestrator.rounds.accepting import accept, finish_unchanged, measure_untrained
from orchestrator.rounds.collecting import collect
from orchestrator.rounds.drawing import draw
from orchestrator.rounds.evaluating import evaluate, num_shards
from orchestrator.rounds.limits import reason_to_stop
from orchestrator.rounds.mending import intact_candidate, ready_to_train
from orchestrator.rounds.phases import (
    Collected,
    Drawn,
    Evaluated,
    Phase,
    Published,
    Synced,
    Trained,
)
from orchestrator.rounds.publishing import publish, sync
from orchestrator.rounds.recording import record_round
from orchestrator.rounds.scope import phase
from orchestrator.rounds.updating import update
from orchestrator.run import RoundScope, Run
from policies.records import RoundResult


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
    if scope.index == 0:
        measured = phase(
            scope,
            Phase.EVALUATE,
            Evaluated,
            lambda s: evaluate(s, s.policy),
            shards=num_shards(scope),
        )
        return phase(scope, Phase.ACCEPT, RoundResult, lambda s: measure_untrained(s, measured))
    collected = phase(
        scope, Phase.COLLECT, Collected, lambda s: collect(s, drawn), shards=drawn.num_shards
    )
    trained = phase(
        scope, Phase.TRAIN, Trained, lambda s: update(s, ready_to_train(s, drawn, collected))
    )
    if trained.outcome is None:
        return phase(
            scope, Phase.ACCEPT, RoundResult, lambda s: finish_unchanged(s, collected, trained)
        )
    published = phase(scope, Phase.PUBLISH, Published, publish)
    candidate = intact_candidate(scope, collected, published)
    phase(scope, Phase.SYNC, Synced, lambda s: sync(s, candidate))
    measured = phase(
        scope, Phase.EVALUATE, Evaluated, lambda s: evaluate(s, candidate), shards=num_shards(scope)
    )
    return phase(
        scope,
        Phase.ACCEPT,
        RoundResult,
        lambda s: accept(s, collected, trained, candidate, measured),
    )
