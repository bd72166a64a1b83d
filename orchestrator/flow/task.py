"""A task: one piece of work of a round, with what it reads, what it leaves, whom it asks, and how it fails.

A task is a description; `orchestrator.flow.scheduler` runs it. Work on shards is in `shard_task`, the update and the
publishing of a version are in `orchestrator.rounds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from orchestrator.flow.waiting import Patience
from policies.base.errors import PawlError, WorkerLostError
from policies.storage.artifacts import discard, find_damage, read_marker
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.cluster.seam import NO_FILES, Files, Group

UNFINISHED = "was never finished"
"""Said of an artifact without a marker: it does not exist yet, and is no damage."""

Guard = Callable[[], None]
"""Raises when this driver may not commit any more."""
Summary = dict[str, Any]


class Finished(Protocol):
    """Facts of a finished artifact, read from the marker that was written last."""

    @property
    def content_digest(self) -> str:
        """Digest of what is in it, equal for equal work."""
        ...

    @property
    def inputs(self) -> Mapping[str, str]:
        """Digest of each thing that it was made from. Empty: an older Pawl did not say."""
        ...

    @property
    def summary(self) -> Mapping[str, Any]:
        """Return what its task answered."""
        ...


class Artifact(Protocol):
    """A file or a folder that a task makes whole. It exists for Pawl when its marker does."""

    @property
    def name(self) -> str:
        """Name among the inputs of what is made from it."""
        ...

    @property
    def path(self) -> Path:
        """Tell it from all others."""
        ...

    @property
    def body(self) -> Path:
        """Return what is set aside when it is damaged."""
        ...

    def finished(self) -> Finished | None:
        """Return what its marker says; None where there is none yet."""
        ...

    def damage(self) -> str | None:
        """Return what is wrong with it (`UNFINISHED` without a marker), or None when it is whole."""
        ...

    def discard(self, guard: Guard) -> None:
        """Remove it, its marker first."""
        ...


@dataclass(frozen=True)
class RecordFile:
    """A file of records with its marker beside it."""

    name: str
    path: Path

    @property
    def body(self) -> Path:
        return self.path

    def finished(self) -> Finished | None:
        return read_marker(self.path)

    def damage(self) -> str | None:
        return find_damage(self.path)

    def discard(self, guard: Guard) -> None:
        discard(self.path, guard)


@dataclass(frozen=True)
class Attempt:
    """One try at a task, by one driver. Each writes on paths of its own."""

    epoch: int
    number: int
    item_filter: ItemFilter = WHOLE


@dataclass(frozen=True)
class Ask:
    """One call of a worker; of `worker`, or of whichever of the group is free."""

    method: str
    arguments: tuple[Any, ...] = ()
    worker: int | None = None
    label: str = ""
    files: Files = NO_FILES


@dataclass(frozen=True)
class Asks:
    """Calls that go out at once; the exchange goes on when all of them are answered."""

    asks: Sequence[Ask]
    patience: Patience
    may_lose: bool = False
    """A worker that dies over its call has answered, with its error: the task goes on without."""


Exchange = Generator[Asks, list[Any], Any]
"""Says what to ask, is sent the answers, asks further, and returns what came of it. It never waits itself."""


@dataclass(kw_only=True, eq=False)
class Task:
    """One piece of work. Kinds of tasks say how to ask, to commit, and what a failure means."""

    key: str
    """Tells it from all others that are run with it."""
    name: str
    """Its kind: `rollout`, `update`. For messages, events and clocks."""
    group: Group | None = None
    """Workers that do it; None where the driver does it itself."""
    reads: tuple[Artifact, ...] = ()
    """Artifacts that it is made from; what makes them comes before it."""
    makes: tuple[Artifact, ...] = ()
    input_digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of what else it is made from: policies, settings, code."""
    after: tuple[str, ...] = ()
    """Keys of tasks that must have finished."""
    chain: str = ""
    """Tasks of one chain bring one shard through. Few chains are begun at once; begun ones end before a stop."""
    folders: tuple[str, ...] = ()
    """Folders that its workers read besides artifacts: policies, models."""
    may_wait: bool = False
    """What it makes is wanted later: when it fails it is left undone, with a warning, and whoever needs it meets the
    error in its own name."""
    takes_others: bool = False
    """Artifacts that were made from other inputs are replaced; else they stop the run."""

    @property
    def title(self) -> str:
        """Return what it is called at the beginning of a sentence."""
        return self.key

    def exchange(self, attempt: Attempt) -> Exchange:
        """Ask the group; the driver's own work asks nobody."""
        yield from ()
        return None

    def commit(
        self, attempt: Attempt, answer: Any, inputs: dict[str, str], guard: Guard
    ) -> Sequence[Finished]:
        """Make what the try left the task's artifacts, and return their markers, in the order of `makes`.

        The summary in the first marker is what is told of the task; without artifacts it is the answer.
        """
        return ()

    def files(self, *, writes: Sequence[Path] = (), live: Sequence[Path] = ()) -> Files:
        """Return what a call reads and writes, for nodes that do not see the run folder."""
        return Files(
            reads=(*self.folders, *(str(artifact.path) for artifact in self.reads)),
            writes=tuple(map(str, writes)),
            live=tuple(map(str, live)),
        )

    # --- while it runs, and when it fails

    def items(self) -> list[str] | None:
        """Ids of what to try one by one when it kills its worker; None where that cannot be done."""
        return None

    def milestone(self) -> int:
        """Tell how far a task that is cut off would go on from: deaths are counted anew when it rises."""
        return 0

    def look_up(self, attempt: Attempt) -> None:
        """Look at how far the try is; called every half second."""

    def settled(self, attempt: Attempt, error: PawlError, guard: Guard) -> Summary | None:
        """Return the outcome when this error is one; None when it is a failure, which ends the round."""
        return None

    def died(self, attempt: Attempt, error: WorkerLostError, deaths: int) -> str | None:
        """Tidy up after a try whose worker died, and return what users are warned with, if they are."""
        return None

    def given_up(self, error: WorkerLostError, deaths: int) -> PawlError:
        """Return what ends the run when the workers died too often."""
        return WorkerLostError(
            f"{error}. {self.title} lost its worker {deaths} times (cluster.max_attempts). Fix: look at the worker's "
            "log for the cause (memory?), then `pawl resume`"
        )

    def describe_item(self, item: str) -> tuple[str, dict[str, object]]:
        """Return the name of the note on a poison item, and its facts."""
        raise NotImplementedError(f"{self.name} has no items")


class Place(NamedTuple):
    """A worker's place among those that do a task together."""

    address: str
    """Where worker 0 listens for the others."""
    port: int
    rank: int
    world_size: int
    local_world_size: int
    """Workers on its machine."""


def rendezvous(
    size: int, patience: Patience, loopback: str
) -> Generator[Asks, list[Any], list[Place | None]]:
    """Let all workers of a group meet, for a task that they do at once; returns the place of each. One needs none."""
    if size == 1:
        return [None]
    answers = yield Asks([Ask("address", worker=worker) for worker in range(size)], patience)
    addresses = [str(answer) for answer in answers]
    on_machine = Counter(addresses)
    address = loopback if len(on_machine) == 1 else addresses[0]
    (port,) = yield Asks([Ask("open_rendezvous", (address,), worker=0)], patience)
    return [
        Place(address, int(port), rank, size, on_machine[addresses[rank]]) for rank in range(size)
    ]
