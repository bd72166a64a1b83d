"""The publish and sync phases: the candidate becomes a version, and the samplers serve it.

*Consumes* the candidate folder. *Produces* a version in the store, and the samplers' own word on what they
serve. *On failure*: publishing is a rename and a manifest, and completes on resume; a sampler that dies is replaced
by one that starts with the version; one that answers with another version or digest stops the round.
"""

from __future__ import annotations

from orchestrator.flow.waiting import wait_for_result
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.transfers import group_files, policy_files
from orchestrator.runs.phases import Published, Synced
from policies.base.errors import RolloutError, WorkerLostError
from policies.base.records import PolicyVersion
from policies.storage.artifacts import file_sha256
from policies.storage.version_files import files_digest


def publish(scope: RoundScope) -> Published:
    """Move the candidate into the store as the version of this round."""
    version = scope.run.store.publish(
        scope.folder.candidate,
        number=scope.index,
        round_index=scope.index,
        parent=scope.policy.number,
    )
    state = scope.folder.optimizer_state
    return Published(
        version=version.number,
        parent=scope.policy.number,
        digest=version.digest,
        optimizer_sha256=file_sha256(state) if state.exists() else None,
        files_digest=files_digest(version),
    )


def sync(scope: RoundScope, version: PolicyVersion) -> Synced:
    """Let every rollout worker load `version`, and check what each says it serves."""
    run, group = scope.run, scope.run.groups.rollout
    files, label = policy_files(version), f"version {version.number}"
    # A worker that dies is built with these weights from now on.
    group.restart_with(group_files(run.config, "rollout", [version]), policy=version)
    calls = {
        i: group.submit("load_policy", version, worker=i, label=label, files=files)
        for i in group.ready()
    }
    for index, call in calls.items():
        try:
            answer = wait_for_result(
                run.cluster,
                call,
                run.config.cluster.sync_timeout_seconds,
                stop=run.stop,
                setting="cluster.sync_timeout_seconds",
            )
        except WorkerLostError as error:
            run.events.warn(f"{error}; the worker in its place starts with this version")
            continue
        if answer != {"version": version.number, "digest": version.digest}:
            raise RolloutError(
                f"rollout worker {index} serves {answer} after it was told to load version {version.number} "
                f"({version.digest[:12]}): its samples would be recorded under the "
                "wrong policy. Fix: `pawl resume`; report this if it comes back"
            )
    return Synced(version=version.number, digest=version.digest, workers=group.size)
