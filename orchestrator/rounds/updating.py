"""The train phase: one update of the policy from the round's examples, against an explicit reference.

*Consumes* the round's example files, those of earlier rounds in its view, the serving policy and the reference's
versions. *Produces* a candidate folder with new weights, and what happened. *On failure*: a trainer that dies is
replaced and goes on from the last checkpoint, as does a resumed run; an update whose numbers are not finite is
abandoned, and the round ends with the serving policy untouched.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.config.plug_ins.asked import objective_of, reference_plan
from orchestrator.rounds.ahead import Ahead
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.logprob_gap import must_recompute, was_forced
from orchestrator.rounds.scheduling import scheduler
from orchestrator.rounds.training import DIVERGED, OUTCOME, update_task
from orchestrator.rounds.update_view import UpdateView, learning_rate_factor, view_of
from orchestrator.runs.events import EventKind
from orchestrator.runs.phases import Collected, Trained
from policies.base.errors import DivergenceError
from policies.base.records import RoundStatus
from policies.base.seeds import derive_seed
from workers.training.engine import UpdateJob, UpdateOutcome


def update(scope: RoundScope, collected: Collected) -> Trained:
    """Train on the round's examples, or say why not."""
    run, options = scope.run, scope.stage.training
    served = run.served()[scope.stage.first_round - 1 :]
    plan = reference_plan(run.config, options.reference, served)
    loss = objective_of(options.loss)
    # KTO's reference point needs log-probs of completions that nobody sampled, so its trainer scores everything.
    borrows = loss.kl_share > 0
    recorded = options.reference.logprobs == "rollout" and not borrows
    sampled = recorded and plan.single == scope.policy.number
    forced = sampled and was_forced(scope)
    own = sampled and not forced
    source = "rollout" if own else "recompute"
    view = view_of(scope, collected)
    number = collected.num_examples + view.num_reused
    if number < options.min_examples:
        why = _too_few(number, options.min_examples, collected.dropped)
        return Trained(reference=plan, logprobs=source, outcome=None, skipped_because=why)
    job = UpdateJob(
        round=scope.index,
        stage=scope.stage.index,
        policy=scope.policy,
        reference=plan,
        reference_versions=tuple(run.store.get(part.version) for part in plan.parts),
        logprobs="rollout" if own else "recompute",
        seed=derive_seed(run.config.seed, "train", scope.index),
        example_rows=view.rows,
        output_dir=str(scope.folder.candidate),
        optimizer_state=carried_state(scope),
        optimizer_output=str(scope.folder.optimizer_state)
        if options.optimizer == "carry"
        else None,
        log_path=str(scope.folder.train_log),
        checkpoint_dir=str(scope.folder.checkpoints),
        learning_rate_factor=learning_rate_factor(scope),
    )
    try:
        outcome = _timed(scope, job, view, number)
        if must_recompute(scope, outcome, source, forced):
            source, forced = "recompute", True
            job = job.model_copy(update={"logprobs": "recompute"})
            outcome = _timed(scope, job, view, number)
    except DivergenceError as error:
        run.events.warn(f"the update was abandoned: {error}", round_index=scope.index)
        return Trained(
            reference=plan,
            logprobs=source,
            outcome=None,
            skipped_because=str(error),
            diverged=True,
        )
    return Trained(
        reference=plan,
        logprobs=source,
        outcome=outcome,
        forced=forced,
        reused=view.reused,
        num_reused=view.num_reused,
        replayed=view.replayed,
    )


def _timed(scope: RoundScope, job: UpdateJob, view: UpdateView, number: int) -> UpdateOutcome:
    """Make the update, and tell how fast it was: the journal has no clocks."""
    ahead = Ahead(scope)
    flow = scheduler(scope, ahead.finished)
    task = update_task(scope, job, view.paths, _expected_steps(scope, number + view.num_replayed))
    found = flow.run([task, *ahead.tasks])[task.key]
    ahead.tell(flow)
    if DIVERGED in found:
        raise DivergenceError(found[DIVERGED])
    outcome = UpdateOutcome.model_validate_json(found[OUTCOME])
    if clock := flow.clocks.get(task.name):  # else it was finished already
        scope.run.events.emit(
            EventKind.THROUGHPUT,
            round_index=scope.index,
            phase="train",
            stages={"train": {"tokens": outcome.num_tokens, "seconds": round(clock.seconds, 3)}},
            timings=task.timings,
        )
    return outcome


def _too_few(number: int, needed: int, dropped: Mapping[str, int]) -> str:
    most = sorted(dropped.items(), key=lambda kv: -kv[1])[:4]
    left_out = ", ".join(f"{name}: {n}" for name, n in most)
    return (
        f"{number} examples, training.min_examples is {needed} (left out: {left_out or 'nothing'})"
    )


def carried_state(scope: RoundScope) -> str | None:
    """The optimizer state of the round of this stage that made the serving policy, when it is to be carried."""
    if scope.stage.training.optimizer != "carry":
        return None
    for result in reversed(scope.run.journal.results()):
        if result.round < scope.stage.first_round:
            break
        accepted = result.status in (RoundStatus.IMPROVED, RoundStatus.KEPT)
        if accepted and result.after == scope.policy.number:
            path = scope.run.folder.round(result.round).optimizer_state
            return str(path) if path.exists() else None
    return None


def _expected_steps(scope: RoundScope, num_examples: int) -> int:
    """Steps of the update, unless examples are dropped."""
    options = scope.stage.training
    return max(1, -(-num_examples // options.batch_size)) * options.epochs
