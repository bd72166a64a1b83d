"""The train phase: one update of the policy from the round's examples, against an explicit reference.

*Consumes* the round's example files, the serving policy and the reference's versions. *Produces* a
candidate folder with new weights, and what happened. *On failure*: the candidate is removed and the
update is made again on resume; a diverged update stops the run with the serving policy untouched.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable

from orchestrator.events import EventKind
from orchestrator.phases import Collected, Trained
from orchestrator.run import RoundScope
from orchestrator.waiting import wait_for_result
from policies.component import create
from policies.records import RoundStatus
from policies.reference import ReferenceSchedule
from policies.seeds import derive_seed
from workers.training.engine import UpdateJob, UpdateOutcome

logger = logging.getLogger(__name__)


def update(scope: RoundScope, collected: Collected) -> Trained:
    """Train on the round's examples, or say why not."""
    run, options = scope.run, scope.stage.training
    schedule: ReferenceSchedule = create(options.reference)
    plan = schedule.plan(run.served()[scope.stage.first_round - 1 :])
    own = options.reference.logprobs == "rollout" and plan.single == scope.policy.number
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
        optimizer_state=_carried_state(scope),
        optimizer_output=str(scope.folder.optimizer_state)
        if options.optimizer == "carry"
        else None,
        log_path=str(scope.folder.train_log),
    )
    if scope.folder.train.exists():  # a part of an update that was cut off
        shutil.rmtree(scope.folder.train)
    scope.folder.train.mkdir(parents=True)
    call = run.groups.train.submit(
        "update",
        job,
        [str(p) for p in scope.folder.shards("examples")],
        label=f"round {scope.index}",
    )
    outcome: UpdateOutcome = wait_for_result(
        run.cluster,
        call,
        run.config.cluster.training_timeout_seconds,
        stop=run.stop,
        look_up=_progress(scope, collected),
    )
    return Trained(reference=plan, logprobs=source, outcome=_without_clock(outcome))


def _carried_state(scope: RoundScope) -> str | None:
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


def _progress(scope: RoundScope, collected: Collected) -> Callable[[], None]:
    """Report each optimizer step as an event, from the log that the trainer writes."""
    seen = 0
    options = scope.stage.training
    expected = max(1, -(-collected.num_examples // options.batch_size)) * options.epochs

    def look() -> None:
        nonlocal seen
        try:
            lines = scope.folder.train_log.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines[seen:]:
            try:
                row = json.loads(line)
            except ValueError:  # the trainer is writing this line
                return
            seen += 1
            scope.run.events.emit(
                EventKind.TRAINING_STEP,
                round_index=scope.index,
                phase="train",
                step=row.get("step", seen),
                steps=expected,
                loss=row.get("train/loss"),
            )

    return look


def _without_clock(outcome: UpdateOutcome) -> UpdateOutcome:
    """The journal holds no clocks, and no NaN, which JSON has no word for; the trainer's log has both."""
    kept = {
        name: value
        for name, value in outcome.metrics.items()
        if "second" not in name and math.isfinite(value)
    }
    return outcome.model_copy(update={"metrics": kept})
