"""The train phase: one update of the policy from the round's examples, against an explicit reference.

*Consumes* the round's example files, the serving policy and the reference's versions. *Produces* a
candidate folder with new weights, and what happened. *On failure*: a trainer that dies is replaced and
goes on from the last checkpoint, as does a resumed run; an update whose numbers are not finite is
abandoned, and the round ends with the serving policy untouched.
"""

from __future__ import annotations

import math

from orchestrator.rounds.phases import Collected, Trained
from orchestrator.rounds.training import train
from orchestrator.run import RoundScope
from policies.component import create
from policies.errors import DivergenceError
from policies.loss import Loss, UnpairedLoss
from policies.records import RoundStatus
from policies.reference import ReferenceSchedule
from policies.seeds import derive_seed
from workers.training.engine import UpdateJob, UpdateOutcome


def update(scope: RoundScope, collected: Collected) -> Trained:
    """Train on the round's examples, or say why not."""
    run, options = scope.run, scope.stage.training
    schedule: ReferenceSchedule = create(options.reference)
    plan = schedule.plan(run.served()[scope.stage.first_round - 1 :])
    loss: Loss = create(options.loss)
    # KTO's reference point needs log-probs of completions that nobody sampled, so its trainer scores everything.
    borrows = isinstance(loss, UnpairedLoss) and loss.kl_share > 0
    recorded = options.reference.logprobs == "rollout" and not borrows
    own = recorded and plan.single == scope.policy.number
    source = "rollout" if own else "recompute"
    if collected.num_examples < options.min_examples:
        reason = (
            f"{collected.num_examples} examples, training.min_examples is {options.min_examples}"
        )
        dropped = ", ".join(
            f"{name}: {n}"
            for name, n in sorted(collected.dropped.items(), key=lambda kv: -kv[1])[:4]
        )
        return Trained(
            reference=plan,
            logprobs=source,
            outcome=None,
            skipped_because=f"{reason} (left out: {dropped or 'nothing'})",
        )
    job = UpdateJob(
        round=scope.index,
        stage=scope.stage.index,
        policy=scope.policy,
        reference=plan,
        reference_versions=tuple(run.store.get(part.version) for part in plan.parts),
        logprobs="rollout" if own else "recompute",
        seed=derive_seed(run.config.seed, "train", scope.index),
        output_dir=str(scope.folder.candidate),
        optimizer_state=carried_state(scope),
        optimizer_output=str(scope.folder.optimizer_state)
        if options.optimizer == "carry"
        else None,
        log_path=str(scope.folder.train_log),
        checkpoint_dir=str(scope.folder.checkpoints),
    )
    try:
        outcome = train(scope, job, _expected_steps(scope, collected))
    except DivergenceError as error:
        run.events.warn(f"the update was abandoned: {error}", round_index=scope.index)
        return Trained(
            reference=plan,
            logprobs=source,
            outcome=None,
            skipped_because=str(error),
            diverged=True,
        )
    return Trained(reference=plan, logprobs=source, outcome=_without_clock(outcome))


def carried_state(scope: RoundScope) -> str | None:
    """The optimizer state of the stage's last round whose policy was accepted, when it is to be carried."""
    if scope.stage.training.optimizer != "carry":
        return None
    for result in reversed(scope.run.journal.results()):
        if result.round < scope.stage.first_round:
            break
        if result.status in (RoundStatus.IMPROVED, RoundStatus.KEPT):
            path = scope.run.folder.round(result.round).optimizer_state
            return str(path) if path.exists() else None
    return None


def _expected_steps(scope: RoundScope, collected: Collected) -> int:
    """Steps of the update, unless examples are dropped."""
    options = scope.stage.training
    return max(1, -(-collected.num_examples // options.batch_size)) * options.epochs


def _without_clock(outcome: UpdateOutcome) -> UpdateOutcome:
    """The journal holds no clocks, and no NaN, which JSON has no word for; the trainer's log has both."""
    kept = {
        name: value
        for name, value in outcome.metrics.items()
        if "second" not in name and math.isfinite(value)
    }
    return outcome.model_copy(update={"metrics": kept})
