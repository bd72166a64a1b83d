"""The Ray cluster of a run: groups of actors are started on it, waited for with an end, and taken down again.

Neither calls nor actors of workers are retried by Ray (`max_task_retries=0`, `max_restarts=0`: a hidden retry would run
a side effect twice): a lost call is reported and the driver hands it out again; a lost worker is replaced by a fresh
actor, a bounded number of times in a row (`workers.cluster.ray.group`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from policies.base.errors import (
    ConfigurationError,
    PawlError,
    WaitTimeoutError,
    WorkerLostError,
    explain,
)
from workers.cluster.gpus import usable_gpus
from workers.cluster.ray.failures import translate
from workers.cluster.ray.group import RayCall, RayGroup, Slot
from workers.cluster.ray.host import TransferEndpoint, WorkerActor, start_server
from workers.cluster.ray.session import RaySession, epoch_name
from workers.cluster.seam import Call, Files, Group, GroupSpec, Resources
from workers.cluster.transfer.shared_folder import RunFiles

logger = logging.getLogger(__name__)

SLICE_SECONDS = 1.0
"""How often a long wait looks up: for workers that became ready, and for the cluster itself."""


class RayCluster:
    """A Ray cluster that was joined (`address`) or started here."""

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: int | None = None,
        run: str | None = None,
        epoch: int = 0,
        allow_insecure: bool = False,
        lost_after_seconds: float = 40.0,
        was_running: bool = False,
        keep: Collection[str] = (),
        files: RunFiles | None = None,
        on_warning: Callable[[str], None] = logger.warning,
    ) -> None:
        """Join or start a cluster; with a `run`, end what its earlier epochs left there.

        With `files` every worker looks whether it shares the run folder with this process.

        Raises:
            ConfigurationError: the cluster at `address` cannot be reached, refuses the token, or is open to all.
            ClusterLostError: it cannot be reached although the run began on it (`was_running`).
        """
        self._session = RaySession(
            address=address,
            num_cpus=num_cpus,
            allow_insecure=allow_insecure,
            lost_after_seconds=lost_after_seconds,
            was_running=was_running,
            keep=keep,
        )
        self._prefix = f"{run}/{epoch_name(epoch)}" if run is not None else None
        self._keep = tuple(keep)
        self._on_warning = on_warning
        self._groups: list[RayGroup] = []
        self._bundles: list[Any] = []
        if run is not None and not self._session.started_here:
            for name in self._session.end_leftovers(run, epoch):
                on_warning(f"ended {name}, which an earlier driver of this run had left")
        self._endpoint = None
        if files is not None:
            actor = f"{self._prefix}/files" if self._prefix is not None else None
            self._endpoint = TransferEndpoint(
                files, None if files.shared else start_server(files, actor, keep)
            )

    @property
    def gcs_address(self) -> str:
        """`host:port` of the cluster's control plane."""
        return self._session.gcs_address

    def gpus(self) -> float:
        """GPUs of all nodes; none where the run is on this machine and its torch is built for CPUs only."""
        import ray

        if self._session.started_here and not usable_gpus():
            return 0.0
        return float(ray.cluster_resources().get("GPU", 0.0))

    def start_group(self, spec: GroupSpec) -> RayGroup:
        self._check_fits(spec.name, spec.size, spec.resources)
        group = RayGroup(spec, self._starter(spec), on_warning=self._on_warning)
        self._groups.append(group)
        return group

    def _starter(self, spec: GroupSpec) -> Callable[[Slot, Mapping[str, Any], Files], Any]:
        """Return what starts an actor for a slot of the group, now and whenever it must be replaced."""
        import ray

        resources = spec.resources
        options: dict[str, Any] = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "resources": dict(resources.custom) or None,
            "label_selector": dict(resources.labels) or None,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        bundles = None
        if resources.placement == "spread":
            options["scheduling_strategy"] = "SPREAD"
        elif resources.placement == "pack":
            bundles = self._pack(spec.size, resources)

        def start(slot: Slot, kwargs: Mapping[str, Any], files: Files) -> Any:
            own = dict(options)
            if self._prefix is not None:
                again = f".{slot.replaced}" if slot.replaced else ""
                own["name"] = f"{self._prefix}/{spec.name}/{slot.index}{again}"
            if bundles is not None:
                from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

                own["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    bundles, placement_group_bundle_index=slot.index
                )
            actor = ray.remote(WorkerActor).options(**own)
            return actor.remote(spec.worker, dict(kwargs), self._keep, self._endpoint, files)

        return start

    def _pack(self, size: int, resources: Resources) -> Any:
        """Room for a whole group on as few nodes as possible, reserved together."""
        import ray

        each = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
        bundle = {kind: amount for kind, amount in each.items() if amount}
        labels = [dict(resources.labels)] * size if resources.labels else None
        group = ray.util.placement_group(
            [bundle] * size, strategy="PACK", bundle_label_selector=labels
        )
        self._bundles.append(group)
        return group

    def _check_fits(self, name: str, size: int, resources: Resources) -> None:
        """Refuse what a cluster of our own can never place; a joined cluster may still grow."""
        import ray

        if not self._session.started_here:
            return
        total = ray.cluster_resources()
        asked = _asked(resources)
        for kind, each in asked.items():
            taken = sum(g.size * _asked(g.resources).get(kind, 0.0) for g in self._groups)
            need = taken + size * each
            if need > total.get(kind, 0.0) + 1e-9:
                raise ConfigurationError(
                    explain(
                        f"{size} {name} worker(s) do not fit: all groups together ask "
                        f"for {need:g} {kind}, this machine has {total.get(kind, 0.0):g}",
                        value=each,
                        where=f"the workers and resources of {name}",
                        fix="lower the number of workers or their num_cpus/num_gpus (fractions share a core or a GPU); "
                        "custom resources exist on a cluster of yours only (cluster.address)",
                    )
                )

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:

        deadline = time.monotonic() + timeout_seconds
        if self._endpoint is not None:
            self._endpoint.check(timeout_seconds)
        for group in cast("Sequence[RayGroup]", groups):
            while waiting := group.unready():
                self._session.check()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise group.not_placed(waiting, timeout_seconds, "starting the run")
                _pause(group.building(), min(left, SLICE_SECONDS))
            group.raise_if_broken()

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        import ray

        ray_calls = cast("Sequence[RayCall]", calls)
        groups = {id(c.group): c.group for c in ray_calls}.values()
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._session.check()
            for group in groups:
                group.hand_out()
            settled: list[Call] = [c for c in ray_calls if c.failure is not None]
            refs = {c.ref: c for c in ray_calls if c.ref is not None and c.failure is None}
            starting = [built for g in groups for built in g.building()]
            left = max(0.0, min(SLICE_SECONDS, deadline - time.monotonic()))
            if refs and not settled:
                ray.wait([*refs, *starting], num_returns=1, timeout=left)
            elif not settled:
                _pause(starting, left)
            if refs:
                done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
                settled += [refs[ref] for ref in done]
            if settled:
                return settled
            if time.monotonic() >= deadline:
                raise self._nothing_finished(ray_calls, timeout_seconds)

    def _nothing_finished(self, calls: Sequence[RayCall], timeout_seconds: float) -> PawlError:
        names = ", ".join(f"{c.label} ({c.standing()})" for c in calls[:4])
        return WaitTimeoutError(
            explain(
                f"nothing finished in time; waiting for {len(calls)} call(s): {names}",
                value=timeout_seconds,
                where="the timeout of this wait, under cluster (cluster.shard_timeout_seconds for shards)",
                fix="look at the workers' logs in Ray's session folder; raise the timeout if the work is just slow",
            )
        )

    def result(self, call: Call, timeout_seconds: float) -> Any:
        import ray

        assert isinstance(call, RayCall)
        if call.ref is None and call.failure is None:
            self.wait_any([call], timeout_seconds)
        if call.failure is not None:
            raise call.failure
        place = call.slot.place if call.slot is not None else None
        try:
            value = ray.get(call.ref, timeout=timeout_seconds)
        except ray.exceptions.RayError as error:
            failure = translate(error, call.label, place=place, timeout_seconds=timeout_seconds)
            if isinstance(failure, WorkerLostError):
                failure = call.group.lost(call, failure)
            elif not isinstance(failure, WaitTimeoutError):
                call.group.finished(call)
            raise failure from error
        call.group.finished(call)
        return value

    def abandon(self, call: Call, reason: str) -> None:
        assert isinstance(call, RayCall)
        call.group.lost(call, WorkerLostError(f"{call.label}: its worker was ended: {reason}"))

    def close(self) -> None:
        import ray

        if self._endpoint is not None:
            self._endpoint.close(group.idle() for group in self._groups)
        for group in self._groups:
            for actor in group.actors:
                with contextlib.suppress(Exception):  # the cluster may be gone already
                    ray.kill(actor, no_restart=True)
        for bundle in self._bundles:
            with contextlib.suppress(Exception):  # likewise
                ray.util.remove_placement_group(bundle)
        self._groups.clear()
        self._session.close()


def _asked(resources: Resources) -> dict[str, float]:
    return {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}


def _pause(starting: Sequence[Any], seconds: float) -> None:
    """Wait for a worker to be built, or, when none is being built, just for a moment."""
    import ray

    if starting:
        ray.wait(list(starting), num_returns=1, timeout=seconds)
    else:
        time.sleep(min(seconds, 0.2))
