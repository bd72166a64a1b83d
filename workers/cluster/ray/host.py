"""Code that runs in Ray's processes: the actor that hosts a worker, and the file server for other nodes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.base.errors import (
    ArtifactError,
    CorruptPolicyError,
    WaitTimeoutError,
    WorkerLostError,
    explain,
)
from workers.cluster.environment import scrub
from workers.cluster.gpus import show_only
from workers.cluster.heartbeat import reporting
from workers.cluster.ray.failures import Place, translate
from workers.cluster.seam import NO_FILES, Files
from workers.cluster.transfer.client import TransferClient
from workers.cluster.transfer.server import FileServer
from workers.cluster.transfer.shared_folder import RunFiles

UMASK = 0o077
"""Files of a run belong to the user alone, their copies too."""
LEAVE_SECONDS = 5.0
"""How long idle workers may take to remove their copies at the end of a run."""


class WorkerActor:
    """Runs inside the actor: builds the worker at the first call, so that its errors come back whole."""

    def __init__(
        self,
        factory: Callable[..., Any],
        kwargs: dict[str, Any],
        keep: tuple[str, ...],
        endpoint: TransferEndpoint | None = None,
        files: Files = NO_FILES,
    ) -> None:
        scrub(os.environ, keep=keep)  # Ray has read its token by now
        show_only(_assigned_gpus())
        self._factory = factory
        self._kwargs = kwargs
        self._files = files
        self._worker: Any = None
        self._endpoint = endpoint
        self._looked = False
        self._client: TransferClient | None = None

    def place(self) -> Place:
        """Tell where this actor runs."""
        import ray

        context = ray.get_runtime_context()
        return Place(os.getpid(), context.get_node_id(), ray.util.get_node_ip_address())

    def build(self) -> None:
        """Build the worker if it is not there."""
        if self._worker is None:
            self._look()
            with self._transferring("", self._files):
                self._worker = self._factory(**self._kwargs)

    def call(
        self, method: str, args: tuple[Any, ...], report: str = "", files: Files = NO_FILES
    ) -> Any:
        """Run one method of the worker."""
        self.build()
        with reporting(report), self._transferring(report, files):
            try:
                return getattr(self._worker, method)(*args)
            except (ArtifactError, CorruptPolicyError):
                # The driver looks at its own files; what is damaged may be this node's copy.
                if self._client is None or not self._client.refetch_damaged(files.reads):
                    raise
                return getattr(self._worker, method)(*args)

    def leave(self) -> None:
        """Remove this worker's copies of files: the run is over."""
        if self._client is not None:
            self._client.close()

    def _look(self) -> None:
        """See, once, whether this node shares the run folder.

        Raises:
            ConfigurationError: it does not and should.
        """
        if self._looked or self._endpoint is None:
            return
        files = self._endpoint.files
        if not files.seen_here():
            place = self.place()
            if self._endpoint.server is None:
                raise files.not_shared(f"the node {place.node[:10]} ({place.address})")
            os.umask(UMASK)
            name = f"{place.node[:8]}-{place.pid}"
            self._client = TransferClient(self._endpoint.ask, Path(files.root), name)
        self._looked = True

    @contextmanager
    def _transferring(self, report: str, files: Files) -> Iterator[None]:
        if self._client is None:
            yield
            return
        with self._client.transferring(report, files):
            yield


def _assigned_gpus() -> list[str]:
    """The GPUs that Ray gave to this actor. To one that asked for none it says nothing, which would show it all."""
    import ray

    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


class _ServerActor(FileServer):
    """The file server in an actor of its own."""

    def __init__(self, files: RunFiles, keep: tuple[str, ...]) -> None:
        scrub(os.environ, keep=keep)
        os.umask(UMASK)
        super().__init__(files)


def start_server(files: RunFiles, name: str | None, keep: Collection[str]) -> Any:
    """Start the file server on this process's node; it takes no CPU from workers.

    Its operations may be repeated, so this is the one actor that Ray may restart by itself.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_concurrency": 8,
        "max_restarts": 8,
        "max_task_retries": 2,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
    if name is not None:
        options["name"] = name
    return ray.remote(_ServerActor).options(**options).remote(files, tuple(keep))


@dataclass(frozen=True)
class TransferEndpoint:
    """Means of a worker actor to see if it shares the run folder, and to reach the file server where it does not."""

    files: RunFiles
    server: Any = None
    """Handle of the actor; None where every node must share the folder."""

    def ask(self, method: str, *args: object) -> object:
        """The server's answer.

        Raises:
            WorkerLostError: it did not answer in time, or died too often: this worker is as good as lost.
            PawlError: what the server raised.
        """
        import ray

        what = f"the file server on the driver's node ({method} {args[0] if args else ''})"
        try:
            return ray.get(
                getattr(self.server, method).remote(*args), timeout=self.files.timeout_seconds
            )
        except ray.exceptions.RayError as error:
            failure = translate(error, what)
            if isinstance(failure, WaitTimeoutError):
                raise WorkerLostError(
                    explain(
                        f"this worker waited for {what}, and no answer came",
                        value=self.files.timeout_seconds,
                        where="cluster.transfer_timeout_seconds",
                        fix="check the network between the nodes and the driver's disk; raise the setting if a piece "
                        "of 8 MiB just takes longer",
                    )
                ) from error
            raise failure from error

    def check(self, timeout_seconds: float) -> None:
        """Return when the server runs and sees the run folder.

        Raises:
            ConfigurationError: it does not see it.
            WaitTimeoutError: it did not come up in time.
        """
        import ray

        if self.server is None:
            return
        try:
            ray.get(self.server.check.remote(), timeout=timeout_seconds)
        except ray.exceptions.RayError as error:
            what = "starting the file server on the driver's node"
            raise translate(error, what, timeout_seconds=timeout_seconds) from error

    def close(self, idle: Iterable[list[Any]]) -> None:
        """Let idle workers remove their copies, for a bounded time, and end the server."""
        import ray

        if self.server is None:
            return
        with contextlib.suppress(Exception):  # the cluster may be gone already
            leaving = [actor.leave.remote() for actors in idle for actor in actors]
            if leaving:
                ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)
        with contextlib.suppress(Exception):  # likewise
            ray.kill(self.server, no_restart=True)
