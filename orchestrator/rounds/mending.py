"""Checks before something is built on: damaged examples and unfinished versions are made again, never trained on.

What cannot be made again from what is before it stops the run with its name (exit code 3).
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.plugins.asked import reference_plan
from orchestrator.rounds.collecting import collect
from orchestrator.rounds.phases import Collected, Drawn, Phase, Published
from orchestrator.rounds.publishing import publish
from orchestrator.rounds.updating import carried_state, update
from orchestrator.run import RoundScope
from policies.errors import CorruptStateError, PolicyStoreError
from policies.records import PolicyVersion
from policies.shards import file_sha256, find_damage
from policies.store import check_weights


def ready_to_train(scope: RoundScope, drawn: Drawn, collected: Collected) -> Collected:
    """Check what an update is made from: the round's examples, the serving policy and its references.

    Raises:
        CorruptPolicyError: a published version that the update needs was damaged.
        CorruptStateError: the optimizer state that is carried over was damaged.
        CorruptStateError: damaged examples were made again and differ from what the round had.
    """
    run = scope.run
    served = run.served()[scope.stage.first_round - 1 :]
    plan = reference_plan(run.config, scope.stage.training.reference, served)
    for number in sorted({scope.policy.number, *(part.version for part in plan.parts)}):
        check_weights(run.store.get(number))
    _check_carried(scope)
    places = [scope.folder.shard(i).of("examples") for i in range(drawn.num_shards)]
    damaged = [str(path) for path in places if find_damage(path) is not None]
    # The pipeline puts damaged files aside and makes them again.
    if damaged and collect(scope, drawn) != collected:
        raise CorruptStateError(
            f"{', '.join(damaged)} was damaged, is in quarantine, and came out differently when made again: "
            "the engine does not repeat its samples. Fix: restore the files from a copy of the run"
        )
    return collected


def _check_carried(scope: RoundScope) -> None:
    """Refuse an optimizer state that is not what its round left: no number in it would show that it changed."""
    path = carried_state(scope)
    if path is None:
        return
    index = int(Path(path).parents[1].name)
    published = scope.run.journal.find(index, Phase.PUBLISH, Published)
    known = None if published is None else published.optimizer_sha256
    if known is not None and file_sha256(Path(path)) != known:
        raise CorruptStateError(
            f"{path} changed since round {index} wrote it. Set by: training.optimizer (carry). "
            "Fix: restore it from a copy of the run; or remove it, and the next update begins with fresh moments"
        )


def intact_candidate(
    scope: RoundScope, collected: Collected, published: Published
) -> PolicyVersion:
    """The version that this round published; trained and published again when its files were damaged since.

    Raises:
        CorruptStateError: the update, made again, gave other weights.
    """
    store, number = scope.run.store, published.version
    try:
        version = store.get(number)
        check_weights(version)
        if version.digest == published.digest:
            return version
        why = "its digest is not the one that the journal recorded"
    except PolicyStoreError as error:
        why = str(error)
    scope.run.quarantine.set_aside(store.directory(number), why)
    scope.run.events.warn(
        f"policy version {number}: {why}; it is in quarantine and trained again",
        round_index=scope.index,
    )
    update(scope, collected)
    if publish(scope).digest != published.digest:
        raise CorruptStateError(
            f"policy version {number} was damaged ({why}), is in quarantine, and came out differently when trained "
            "again. Fix: restore it from a copy of the run"
        )
    return store.get(number)
