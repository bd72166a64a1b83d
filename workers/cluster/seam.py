"""The cluster seam: groups of workers, calls that run elsewhere, and waits that always end.

`workers.cluster.ray.cluster.RayCluster` is the real one, `workers.cluster.inline.InlineCluster` runs everything in this
process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from policies.base.seeds import derive_seed

Placement = Literal["default", "spread", "pack"]
"""Which nodes a group's workers prefer: Ray's choice, as many different ones as there are, as few as possible."""


@dataclass(frozen=True)
class Resources:
    """Resources that one worker asks for, and where the workers of a group should lie."""

    num_cpus: float = 0.5
    num_gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    """Ray resources by name, as nodes offer them (`ray start --resources`)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Node labels that must hold (`ray start --labels`)."""
    placement: Placement = "default"

    def __str__(self) -> str:
        parts = [f"{self.num_cpus:g} CPU", f"{self.num_gpus:g} GPU"]
        parts += [f"{amount:g} {name}" for name, amount in self.custom.items()]
        parts += [f"a node labelled {name}={value}" for name, value in self.labels.items()]
        return ", ".join(parts)


@dataclass(frozen=True)
class Files:
    """Files that a call needs and makes; only nodes that do not see the run folder look at it (`cluster/transfer`)."""

    reads: tuple[str, ...] = ()
    """Files (with the markers beside them) and folders that must be there before the call."""
    writes: tuple[str, ...] = ()
    """Files and folders that it makes: on the driver's node before its answer, also when it fails."""
    live: tuple[str, ...] = ()
    """Files that grow, and folders of parts that are renamed when they are whole: followed while it works."""


NO_FILES = Files()


@dataclass(frozen=True)
class WorkerSeed:
    """Among a group's arguments: a seed that no two workers share, nor a worker and the one that took its place."""

    parts: tuple[object, ...]
    """What it is derived from besides: the run's seed, the group, the driver's epoch."""

    def of(self, index: int, replaced: int) -> int:
        """The seed of worker `index`, of which `replaced` earlier ones were lost."""
        return derive_seed(*self.parts, index, replaced)


def arguments_of(kwargs: Mapping[str, Any], index: int, replaced: int = 0) -> dict[str, Any]:
    """A group's arguments for one of its workers."""
    return {
        name: value.of(index, replaced) if isinstance(value, WorkerSeed) else value
        for name, value in kwargs.items()
    }


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

    def start_group(
        self,
        name: str,
        factory: Callable[..., Any],
        kwargs: dict[str, Any],
        *,
        size: int,
        resources: Resources,
        timeout_seconds: float,
        files: Files = NO_FILES,
    ) -> Group:
        """Begin to start `size` workers, each `factory(**kwargs)`, which reads `files`. `wait_ready` waits for them.

        A `WorkerSeed` among `kwargs` is another number for each of them.

        `timeout_seconds` is also how long a worker that replaces a lost one may take.
        """
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
