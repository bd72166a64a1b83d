"""Files that travel between the driver's node and nodes without the run folder, by phase and worker group."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from orchestrator.config.model_files import folder_of
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import ClusterSettings
from orchestrator.runs.folder import RunFolder
from policies.base.records import PolicyVersion
from policies.storage.policy_store import PolicyStore
from workers.cluster.heartbeat import write_unsynced
from workers.cluster.seam import Files
from workers.cluster.transfer.shared_folder import RunFiles

WRITABLE = (
    "activity",
    "rounds/*/attempts",
    "rounds/*/evaluate/attempts",
    "rounds/*/again-*/attempts",
    "rounds/*/final/attempts",
    "rounds/*/test/attempts",
    "rounds/*/train/checkpoints",
)
"""Where files of workers are taken in: nothing there counts before the driver has committed it."""


def run_files(
    settings: ClusterSettings,
    folder: RunFolder,
    models: tuple[str, ...],
    guard: Callable[[], None],
) -> RunFiles | None:
    """Return what the cluster is told of the run folder; None where all workers run on this machine."""
    if settings.backend == "inline" or settings.address is None:
        return None
    token, path = secrets.token_hex(16), folder.activity_reports / "seen.json"
    write_unsynced(path, token)
    return RunFiles(
        root=str(folder.path),
        token_path=str(path),
        token=token,
        shared=settings.shared_folder,
        readable=models,
        writable=WRITABLE,
        guard=guard,
        timeout_seconds=settings.transfer_timeout_seconds,
    )


def models_of(config: RunConfig, store: PolicyStore) -> tuple[str, ...]:
    """Folders outside the run that its workers read: the starting model, and models that components load."""
    groups = dict.fromkeys(each.group for each in config.components)
    others = [folder for group in groups for folder in _other_models(config, group)]
    folders = [Path(store.get(0).path), *others]
    return tuple(dict.fromkeys(str(_with_blobs(folder)) for folder in folders))


def group_files(config: RunConfig, group: str, policies: Iterable[PolicyVersion] = ()) -> Files:
    """Return what workers of a group read when they start: models of their components, and versions of the policy."""
    reads = [str(path) for path in _other_models(config, group)]
    return Files(reads=tuple(dict.fromkeys([*reads, *(policy.path for policy in policies)])))


def policy_files(*policies: PolicyVersion) -> Files:
    """The weights of `policies`."""
    return Files(reads=tuple(dict.fromkeys(policy.path for policy in policies)))


def _other_models(config: RunConfig, group: str) -> Iterator[Path]:
    for each in config.components_of(group):
        for model in each.other_models():
            folder = folder_of(model)
            if folder is not None:  # else the node fetches it from the hub, or says why it cannot
                yield folder


def _with_blobs(model: Path) -> Path:
    """The hub's cache keeps a model's files beside its snapshots, as targets of links."""
    return model.parent.parent if model.parent.name == "snapshots" else model
