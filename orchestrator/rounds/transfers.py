"""Files that travel between the driver's node and nodes without the run folder, by phase and worker group."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.config.model_files import resolve_model
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import ClusterSettings, PolicySettings
from orchestrator.runs.folder import RoundFolder, RunFolder
from policies.base.errors import InputError
from policies.base.records import PolicyVersion
from policies.storage.policy_store import PolicyStore
from workers.cluster.heartbeat import write_unsynced
from workers.cluster.seam import Files
from workers.cluster.transfer.shared_folder import RunFiles
from workers.judge.backends.engine import EngineBackend
from workers.training.engine import UpdateJob

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
    """Folders outside the run that its workers read: the starting model and judges' models."""
    folders = [Path(store.get(0).path), *_judge_models(config)]
    return tuple(dict.fromkeys(str(_with_blobs(folder)) for folder in folders))


def judge_files(config: RunConfig, policies: Iterable[PolicyVersion]) -> Files:
    """Return what judges read when they start: their models, and the versions of the policy that judge."""
    reads = [str(path) for path in _judge_models(config)]
    return Files(reads=tuple(dict.fromkeys([*reads, *(policy.path for policy in policies)])))


def policy_files(*policies: PolicyVersion) -> Files:
    """The weights of `policies`."""
    return Files(reads=tuple(dict.fromkeys(policy.path for policy in policies)))


def update_files(job: UpdateJob, examples: list[str], folder: RoundFolder) -> Files:
    """Return what one training worker reads and, when it is the one that writes, makes."""
    weights = policy_files(job.policy, *job.reference_versions).reads
    carried = () if job.optimizer_state is None else (job.optimizer_state,)
    checkpoints = str(folder.checkpoints)
    return Files(
        reads=(*weights, *examples, *carried, checkpoints),
        writes=(str(Path(job.log_path).parent),) if job.writes else (),
        live=(job.log_path, checkpoints) if job.writes else (),
    )


def _judge_models(config: RunConfig) -> Iterator[Path]:
    for judge in config.judges:
        backend = judge.backend
        if isinstance(backend, EngineBackend.Config) and backend.model != "policy":
            with suppress(InputError):  # the node fetches it from the hub, or says why it cannot
                yield resolve_model(PolicySettings(model=backend.model), download=False)


def _with_blobs(model: Path) -> Path:
    """The hub's cache keeps a model's files beside its snapshots, as targets of links."""
    return model.parent.parent if model.parent.name == "snapshots" else model
