"""The cluster seam: groups of workers, calls that run elsewhere, and waits that always end.

`workers.cluster.ray.cluster.RayCluster` is the real one, `workers.cluster.inline.InlineCluster` runs everything in this
process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from workers.cluster.group_spec import NO_FILES as NO_FILES
from workers.cluster.group_spec import Files as Files
from workers.cluster.group_spec import GroupSpec as GroupSpec
from workers.cluster.group_spec import Placement as Placement
from workers.cluster.group_spec import Resources as Resources
from workers.cluster.group_spec import Restarts as Restarts
from workers.cluster.group_spec import WorkerSeed as WorkerSeed


class Call(Protocol):
    """A method call that was handed to a worker."""

    @property
    def label(self) -> str:
        """Return who does what, for messages: `rollout 0: sample shard-0003`."""
        ...

    @property
    def running(self) -> bool:
        """Tell whether a worker is at it now, as far as the driver knows."""
        ...

    def standing(self) -> str:
        """Tell where the call stands, for people."""
        ...


class Group(Protocol):
    """Workers of one kind."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def submit(
        self,
        method: str,
        *args: Any,
        worker: int | None = None,
        label: str = "",
        report: str = "",
        files: Files = NO_FILES,
    ) -> Call:
        """Hand a call to `worker`, or to the one with the fewest calls waiting. Returns at once.

        The worker's signs of life (`workers.cluster.heartbeat`) go to the file `report`, if there is one.
        A call for a worker that is being replaced waits for it; one for any worker goes to the first that is ready.
        """
        ...

    def ready(self) -> list[int]:
        """The workers that can be given work now; the others are being replaced, or have been given up."""
        ...

    def restart_with(self, files: Files, /, **kwargs: Any) -> None:
        """Build workers that take the place of lost ones with these arguments and files, not those of the start."""
        ...

    def pids(self) -> list[int]:
        """Process ids of the workers, for tests and `pawl doctor`."""
        ...


class Cluster(Protocol):
    """Starts groups, waits for calls. Every wait has a timeout and a message that names it."""

    def gpus(self) -> float:
        """GPUs that its workers can be given, all groups together."""
        ...

    def start_group(self, spec: GroupSpec) -> Group:
        """Begin to start the workers of a group. `wait_ready` waits for them."""
        ...

    def wait_ready(self, groups: Sequence[Group], timeout_seconds: float) -> None:
        """Return when every worker of `groups` is placed and built.

        Raises:
            WaitTimeoutError: some are not; names them and the resources they wait for.
            PawlError: what a worker's constructor raised.
        """
        ...

    def wait_any(self, calls: Sequence[Call], timeout_seconds: float) -> list[Call]:
        """The calls that have finished; waits until at least one has.

        Raises:
            WaitTimeoutError: none finished in time; names what was waited for.
            ClusterLostError: the cluster does not answer any more.
        """
        ...

    def result(self, call: Call, timeout_seconds: float) -> Any:
        """Return what the call returned.

        Raises:
            CallNotStartedError: its worker died before it came to it; it ran nowhere.
            WorkerLostError: the worker died; whether the call took effect is unknown.
            PlacementError: no node could take a worker for it in time.
            WaitTimeoutError: it did not finish in time.
            PawlError: what the method itself raised.
        """
        ...

    def abandon(self, call: Call, reason: str) -> None:
        """End the worker that has `call` (it is silent, say): its calls fail as lost, and it is replaced."""
        ...

    def close(self) -> None:
        """Stop every worker that this cluster started."""
        ...
