"""The Ray cluster: the only module that imports ray.

Workers are plain classes; one generic actor hosts them. Calls are never retried by Ray
(`max_task_retries=0`: a retry would hide that a side effect ran twice); the driver resubmits shards.
A local cluster is started with token authentication and a token of its own, on loopback.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from policies.errors import (
    ConfigurationError,
    PawlError,
    WaitTimeoutError,
    WorkerLostError,
    explain,
)
from workers.cluster import Call, Group, Resources

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts of one worker by Ray before it counts as gone."""


class Host:
    """Runs inside the actor: builds the worker at the first call, so that its errors come back whole."""

    def __init__(self, factory: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self._factory = factory
        self._kwargs = kwargs
        self._worker: Any = None

    def build(self) -> int:
        """Build the worker if it is not there (first call, or the actor was restarted); return the pid."""
        if self._worker is None:
            self._worker = self._factory(**self._kwargs)
        return os.getpid()

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Run one method of the worker."""
        self.build()
        return getattr(self._worker, method)(*args)


@dataclass(eq=False)
class RayCall:
    """A method call on its way."""

    label: str
    ref: Any
    group: RayGroup
    worker: int


class RayGroup:
    """Actors of one kind."""

    def __init__(self, name: str, actors: list[Any], resources: Resources) -> None:
        self.name = name
        self.resources = resources
        self.actors = actors
        self.built: list[Any] = [actor.build.remote() for actor in actors]
        self._waiting = [0] * len(actors)
        self._open: set[RayCall] = set()

    @property
    def size(self) -> int:
        return len(self.actors)

    def submit(
        self, method: str, *args: Any, worker: int | None = None, label: str = ""
    ) -> RayCall:
        if worker is None:
            worker = min(range(self.size), key=lambda i: self._waiting[i])
        ref = self.actors[worker].call.remote(method, args)
        call = RayCall(f"{self.name} {worker}: {method} {label}".strip(), ref, self, worker)
        self._waiting[worker] += 1
        self._open.add(call)
        return call

    def finished(self, call: RayCall) -> None:
        """The call's answer was taken: its worker has one less to do."""
        if call in self._open:
            self._open.remove(call)
            self._waiting[call.worker] -= 1

    def pids(self) -> list[int]:
        import ray

        return cast("list[int]", ray.get([a.build.remote() for a in self.actors], timeout=60))


@functools.cache
def ensure_token() -> None:
    """Turn token authentication on, with a token of our own that only we can read, unless the user has set it up.

    One token per process: Ray reads it once and keeps it, so a second cluster in the process must use the first's.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="pawl-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


class RayCluster:
    """A Ray cluster that was joined (`address`) or started here."""

    def __init__(self, *, address: str | None = None, num_cpus: int | None = None) -> None:
        """Join or start a cluster.

        Raises:
            ConfigurationError: the cluster at `address` cannot be reached, or refuses the token.
        """
        self._started_here = address is None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self._started_here:
            ensure_token()
        import ray

        try:
            ray.init(
                address=address if address is not None else "local",
                num_cpus=num_cpus if self._started_here else None,
                include_dashboard=False if self._started_here else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                explain(
                    f"cannot join the Ray cluster: {error}",
                    value=address,
                    where="cluster.address",
                    fix=(
                        "check that the cluster runs (`ray status`), that versions agree, "
                        "and that RAY_AUTH_TOKEN_PATH holds its token; or set cluster.address: "
                        "null"
                    ),
                )
            ) from error
        self._groups: list[RayGroup] = []

    def start_group(
        self,
        name: str,
        factory: Callable[..., Any],
        kwargs: dict[str, Any],
        *,
        size: int,
        resources: Resources,
        timeout_seconds: float,
    ) -> RayGroup:
        import ray

        self._check_fits(name, size, resources)
        host = ray.remote(Host).options(
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            max_restarts=MAX_RESTARTS,
            max_task_retries=0,
        )
        group = RayGroup(name, [host.remote(factory, kwargs) for _ in range(size)], resources)
        self._groups.append(group)
        return group

    def _check_fits(self, name: str, size: int, resources: Resources) -> None:
        """Refuse what a cluster of our own can never place; a joined cluster may still grow."""
        import ray

        if not self._started_here:
            return
        total = ray.cluster_resources()
        asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus}
        taken = {"CPU": 0.0, "GPU": 0.0}
        for group in self._groups:
            taken["CPU"] += group.size * group.resources.num_cpus
            taken["GPU"] += group.size * group.resources.num_gpus
        for kind, each in asked.items():
            need = taken[kind] + size * each
            if need > total.get(kind, 0.0) + 1e-9:
                raise ConfigurationError(
                    explain(
                        f"{size} {name} worker(s) do not fit: all groups together ask "
                        f"for {need:g} {kind}, this machine has {total.get(kind, 0.0):g}",
                        value=each,
                        where=f"the workers and resources of {name}",
                        fix="lower the number of workers or their num_cpus/num_gpus (fractions share a core or a GPU)",
                    )
                )

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:
        import ray

        deadline = time.monotonic() + timeout_seconds
        for group in cast("Sequence[RayGroup]", groups):
            done, missing = ray.wait(
                group.built, num_returns=group.size, timeout=max(0.0, deadline - time.monotonic())
            )
            for ref in done:
                self._value(ref, f"{group.name}: start", 60.0)
            if missing:
                r = group.resources
                raise WaitTimeoutError(
                    explain(
                        f"{len(missing)} of {group.size} {group.name} workers were "
                        f"not placed or did not load in time; each asks for {r.num_cpus:g} "
                        f"CPU and {r.num_gpus:g} GPU, free now: {_free()}",
                        value=timeout_seconds,
                        where="cluster.start_timeout_seconds",
                        fix=(
                            "free the resources, ask for less, or wait longer; the workers' "
                            "logs are in Ray's session folder (logs/)"
                        ),
                    )
                )

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        import ray

        ray_calls = cast("Sequence[RayCall]", calls)
        by_ref = {c.ref: c for c in ray_calls}
        done, _ = ray.wait(list(by_ref), num_returns=1, timeout=timeout_seconds)
        if not done:
            names = ", ".join(c.label for c in ray_calls[:4])
            raise WaitTimeoutError(
                explain(
                    f"nothing finished in time; waiting for {len(ray_calls)} call(s): {names}",
                    value=timeout_seconds,
                    where="cluster.*_timeout_seconds",
                    fix="look at the workers' logs in Ray's session folder; raise the timeout if the work is just slow",
                )
            )
        ready, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        return [by_ref[ref] for ref in ready]

    def result(self, call: Call, timeout_seconds: float) -> Any:
        assert isinstance(call, RayCall)
        try:
            return self._value(call.ref, call.label, timeout_seconds)
        finally:
            call.group.finished(call)

    def _value(self, ref: Any, label: str, timeout_seconds: float) -> Any:
        import ray
        from ray import exceptions

        try:
            return ray.get(ref, timeout=timeout_seconds)
        except exceptions.GetTimeoutError as error:
            raise WaitTimeoutError(
                explain(
                    f"no answer from {label}",
                    value=timeout_seconds,
                    where="cluster.*_timeout_seconds",
                    fix="look at the worker's log in Ray's session folder; raise the timeout if the work is just slow",
                )
            ) from error
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, PawlError):
                raise type(cause)(f"{label}: {cause}") from error
            raise PawlError(f"{label} failed: {error}") from error
        except (
            exceptions.RayActorError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        ) as error:
            raise WorkerLostError(
                f"{label}: the worker died: {str(error).strip().splitlines()[0]}"
            ) from error

    def close(self) -> None:
        import ray

        for group in self._groups:
            for actor in group.actors:
                with contextlib.suppress(Exception):  # the cluster may be gone already
                    ray.kill(actor, no_restart=True)
        self._groups.clear()
        ray.shutdown()


def _free() -> str:
    import ray

    free = ray.available_resources()
    return f"{free.get('CPU', 0.0):g} CPU, {free.get('GPU', 0.0):g} GPU"
