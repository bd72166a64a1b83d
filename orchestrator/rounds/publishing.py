"""The publish and sync phases: the candidate becomes a version, and the samplers serve it.

*Consumes* what the update left. *Produces* a version in the store, and the samplers' own word on what they
serve. *On failure*: publishing is a rename and a manifest, and completes on resume; a sampler that dies is replaced
by one that starts with the version; one that answers with another version or digest stops the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.flow.task import (
    UNFINISHED,
    Ask,
    Asks,
    Attempt,
    Exchange,
    Finished,
    Guard,
    Task,
)
from orchestrator.flow.waiting import Patience
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.scheduling import scheduler
from orchestrator.rounds.transfers import group_files, policy_files
from orchestrator.rounds.update_files import UpdateFolder
from orchestrator.runs.phases import Published, Synced
from policies.base.errors import PolicyStoreError, RolloutError, WorkerLostError
from policies.base.records import PolicyVersion
from policies.storage.artifacts import file_sha256
from policies.storage.files import remove_tree
from policies.storage.guarding import committing
from policies.storage.policy_store import Manifest, PolicyStore, check_files
from policies.storage.version_files import files_digest


@dataclass(frozen=True)
class VersionFolder:
    """A published version; its manifest is its marker."""

    store: PolicyStore
    number: int
    name: str = "version"

    @property
    def path(self) -> Path:
        return self.store.directory(self.number)

    @property
    def body(self) -> Path:
        return self.path

    def finished(self) -> Manifest | None:
        return self.store.manifest(self.number)

    def damage(self) -> str | None:
        try:
            if self.finished() is None:
                return UNFINISHED
            check_files(self.store.get(self.number))
        except PolicyStoreError as error:
            return str(error)
        return None

    def discard(self, guard: Guard) -> None:
        with committing(guard):
            remove_tree(self.path)


@dataclass(kw_only=True, eq=False)
class PublishTask(Task):
    """Moves what an update left into the store. The driver does it itself: it is a rename and a manifest."""

    update: UpdateFolder
    version: VersionFolder
    round_index: int
    parent: int

    def commit(
        self, attempt: Attempt, answer: Any, inputs: dict[str, str], guard: Guard
    ) -> Sequence[Finished]:
        self.version.store.publish(
            self.update.folder.candidate,
            number=self.version.number,
            round_index=self.round_index,
            parent=self.parent,
            inputs=inputs,
        )
        made = self.version.finished()
        assert made is not None
        return [made]


@dataclass(kw_only=True, eq=False)
class SyncTask(Task):
    """Every sampler that can be given work loads a version, and says what it serves."""

    version: PolicyVersion
    patience: Patience
    warn: Callable[[str], None]

    def exchange(self, attempt: Attempt) -> Exchange:
        assert self.group is not None
        version, workers = self.version, self.group.ready()
        label = f"version {version.number}"
        asks = [
            Ask("load_policy", (version,), worker=i, label=label, files=self.files())
            for i in workers
        ]
        answers = yield Asks(asks, self.patience, may_lose=True)
        for index, answer in zip(workers, answers, strict=True):
            if isinstance(answer, WorkerLostError):
                self.warn(f"{answer}; the worker in its place starts with this version")
            elif answer != {"version": version.number, "digest": version.digest}:
                raise RolloutError(
                    f"rollout worker {index} serves {answer} after it was told to load version {version.number} "
                    f"({version.digest[:12]}): its samples would be recorded under the "
                    "wrong policy. Fix: `pawl resume`; report this if it comes back"
                )
        return {}


def publish(scope: RoundScope) -> Published:
    """Move the candidate into the store as the version of this round."""
    store, folder = scope.run.store, scope.folder
    update = UpdateFolder(folder, store.directory(scope.index))
    made = VersionFolder(store, scope.index)
    task = PublishTask(
        key=f"{folder.path.name}/publish",
        name="publish",
        reads=(update,),
        makes=(made,),
        update=update,
        version=made,
        round_index=scope.index,
        parent=scope.policy.number,
    )
    scheduler(scope).run([task])
    version, state = store.get(scope.index), folder.optimizer_state
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
    # A worker that dies is built with these weights from now on.
    group.restart_with(group_files(run.config, "rollout", [version]), policy=version)
    seconds = run.config.cluster.sync_timeout_seconds
    task = SyncTask(
        key=f"{scope.folder.path.name}/sync-{version.number:04d}",
        name="sync",
        group=group,
        folders=policy_files(version).reads,
        version=version,
        patience=Patience(seconds, "cluster.sync_timeout_seconds"),
        warn=run.events.warn,
    )
    scheduler(scope).run([task])
    return Synced(version=version.number, digest=version.digest, workers=group.size)
