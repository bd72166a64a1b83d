"""Checks before something is built on: damaged examples and unfinished versions are made again, never trained on.

What cannot be made again from what is before it stops the run with its name (exit code 3).
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.plug_ins.asked import reference_plan
from orchestrator.flow.task import UNFINISHED
from orchestrator.rounds.collecting import collect, digests
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.publishing import VersionFolder, publish
from orchestrator.rounds.update_files import UpdateFolder
from orchestrator.rounds.updating import carried_state, update
from orchestrator.runs.phases import Collected, Drawn, Phase, Published, Trained
from policies.base.errors import CorruptStateError, explain
from policies.base.records import PolicyVersion
from policies.storage.artifacts import file_sha256, find_damage
from policies.storage.policy_store import check_files
from policies.storage.version_files import files_digest


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
        check_files(run.store.get(number))
    _check_carried(scope)
    places = [scope.folder.shard(i).of("examples") for i in range(drawn.num_shards)]
    damaged = [str(path) for path in places if find_damage(path) is not None]
    # The scheduler puts damaged files aside and makes them again.
    if damaged and collect(scope, drawn) != collected:
        raise CorruptStateError(
            f"{', '.join(damaged)} was damaged, is in quarantine, and came out differently when made again: "
            "the engine does not repeat its samples. Fix: restore the files from a copy of the run"
        )
    _check_named(scope, collected)
    return collected


def _check_named(scope: RoundScope, collected: Collected) -> None:
    """Refuse examples that are whole and not those that the journal names: a replaced driver's, or another run's.

    Raises:
        CorruptStateError: they are others.
    """
    found = digests(scope.folder, ["examples"])["examples"]
    if found != collected.digests.get("examples", found):
        raise CorruptStateError(
            f"the examples in {scope.folder.path / 'examples'} are not those that the journal names (digest "
            f"{found[:12]} instead of {collected.digests['examples'][:12]}): another driver or run wrote them. "
            "Fix: restore them from a copy of the run; nothing is trained on them"
        )


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


def publish_intact(scope: RoundScope, collected: Collected, trained: Trained) -> Published:
    """Publish what the update left; weights that were damaged since are put into quarantine and made again.

    Raises:
        CorruptStateError: the update, made again, came out differently.
    """
    left = UpdateFolder(scope.folder, scope.run.store.directory(scope.index))
    why = left.damage()
    # The scheduler puts what is damaged aside and makes it again.
    if why not in (None, UNFINISHED) and update(scope, collected) != trained:
        raise CorruptStateError(
            explain(
                f"the new weights of round {scope.index} were damaged before they were published ({why}), and came "
                "out differently when trained again",
                value=str(left.body),
                where="whoever changed the folder",
                fix="restore them from quarantine or a copy of the run, or start a new run",
            )
        )
    return publish(scope)


def intact_candidate(
    scope: RoundScope, collected: Collected, published: Published
) -> PolicyVersion:
    """The version that this round published; trained and published again when its files were damaged since.

    Raises:
        CorruptStateError: the update, made again, gave other weights.
    """
    store, number = scope.run.store, published.version
    version = VersionFolder(store, number)
    why = version.damage()
    if why is None:
        if _is_same(store.get(number), published):
            return store.get(number)
        why = "its digest is not the one that the journal recorded"
    scope.run.quarantine.set_aside(version.body, why)
    scope.run.events.warn(
        f"policy version {number}: {why}; it is in quarantine and trained again",
        round_index=scope.index,
    )
    update(scope, collected)
    publish(scope)
    if not _is_same(store.get(number), published):
        raise CorruptStateError(
            f"policy version {number} was damaged ({why}), is in quarantine, and came out differently when trained "
            "again. Fix: restore it from a copy of the run"
        )
    return store.get(number)


def _is_same(version: PolicyVersion, published: Published) -> bool:
    """Tell whether a version is what the journal recorded; an older Pawl recorded the weights alone."""
    all_files = published.files_digest in ("", files_digest(version))
    return version.digest == published.digest and all_files
