"""A group of Ray actors: who is ready, who has which call, and who takes the place of a lost one.

One generic actor (`workers.cluster.ray.host`) hosts a plain class. Calls are held here until a worker is ready for
them, so a call that was never handed out, or that stood behind the one that killed its worker, is known not to have
run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.base.errors import (
    CallNotStartedError,
    PawlError,
    PlacementError,
    WorkerLostError,
    WorkerMemoryError,
    explain,
)
from workers.cluster.group_spec import arguments_of
from workers.cluster.ray.failures import Place, translate
from workers.cluster.seam import NO_FILES, Files, GroupSpec

REST_SECONDS = 5.0
"""How long no fresh worker is started on a node that ran out of memory; twice as long after each further death."""
LONGEST_REST_SECONDS = 60.0


@dataclass(eq=False)
class RayCall:
    """A method call: held until a worker is ready for it, then on its way."""

    group: RayGroup
    method: str
    args: tuple[Any, ...]
    text: str
    pinned: int | None
    """The worker that must do it; None is any."""
    slot: Slot | None = None
    ref: Any = None
    failure: PawlError | None = None
    """Known without asking: it was never handed out, or its worker was replaced."""
    report: str = ""
    """File for the worker's signs of life."""
    files: Files = NO_FILES

    @property
    def label(self) -> str:
        number = self.slot.index if self.slot is not None else self.pinned
        who = self.group.name if number is None else f"{self.group.name} {number}"
        return f"{who}: {self.text}"

    @property
    def running(self) -> bool:
        return self.slot is not None and self.slot.open[:1] == [self]

    def standing(self) -> str:
        """Tell where the call stands, for messages."""
        if self.slot is None:
            return "waits for a worker to be ready"
        if self.running:
            return f"running in {self.slot.place}"
        return "waits for its turn"


@dataclass(eq=False)
class Slot:
    """A worker of a group, through all the actors that played it."""

    index: int
    actor: Any = None
    placed: Any = None
    built: Any = None
    ready: bool = False
    place: Place | None = None
    deadline: float = 0.0
    """Until when it must be placed and built, on the monotonic clock."""
    rest_until: float = 0.0
    """When its next actor is started, on the monotonic clock; 0 when it does not rest."""
    replaced: int = 0
    deaths: int = 0
    """In a row, without a finished call between them."""
    gone: str = ""
    """Why it is not replaced any more."""
    broken: PawlError | None = None
    """What its constructor raised, or why it was given up."""
    open: list[RayCall] = field(default_factory=list)
    """Handed out and not finished, oldest first: the first one is running."""


class RayGroup:
    """Actors of one kind."""

    def __init__(
        self,
        spec: GroupSpec,
        start: Callable[[Slot, dict[str, Any], Files], Any],
        *,
        on_warning: Callable[[str], None],
    ) -> None:
        """Begin to start the workers.

        Args:
            spec: of the group.
            start: starts an actor for a slot, with its arguments and the files that it reads.
            on_warning: is told of workers that are replaced.
        """
        self.name = spec.name
        self.resources = spec.resources
        self.timeout_seconds = spec.restarts.timeout_seconds
        self.slots = [Slot(index) for index in range(spec.size)]
        self._start = start
        self._kwargs, self._files = dict(spec.arguments), spec.files
        self.max_restarts = spec.restarts.max_in_a_row
        self._on_warning = on_warning
        self._held: list[RayCall] = []
        for slot in self.slots:
            self._begin(slot)

    @property
    def size(self) -> int:
        return len(self.slots)

    def starting(self) -> list[Slot]:
        """Workers that are being started: not ready, and not given up."""
        return [slot for slot in self.slots if not slot.ready and not slot.gone]

    def unready(self) -> list[Slot]:
        """Workers that are being started, after a look at them."""
        self._look()
        return self.starting()

    def raise_if_broken(self) -> None:
        """Raise what a worker's constructor raised, or why one was given up."""
        for slot in self.slots:
            if slot.broken is not None:
                raise slot.broken

    def building(self) -> list[Any]:
        """Return what becomes ready when a worker that is being started is built."""
        return [slot.built for slot in self.starting() if not slot.rest_until]

    @property
    def actors(self) -> list[Any]:
        return [slot.actor for slot in self.slots if slot.actor is not None]

    def idle(self) -> list[Any]:
        """Actors that wait for work."""
        return [slot.actor for slot in self.slots if slot.ready and not slot.open]

    def submit(
        self,
        method: str,
        *args: Any,
        worker: int | None = None,
        label: str = "",
        report: str = "",
        files: Files = NO_FILES,
    ) -> RayCall:
        text = f"{method} {label}".strip()
        call = RayCall(self, method, args, text, worker, report=report, files=files)
        self._held.append(call)
        self.hand_out()
        return call

    def ready(self) -> list[int]:
        self._look()
        return [slot.index for slot in self.slots if slot.ready]

    def restart_with(self, files: Files, /, **kwargs: Any) -> None:
        self._kwargs |= kwargs
        self._files = files

    def pids(self) -> list[int]:
        import ray

        built = [s.built for s in self.slots if s.built is not None]
        if built:
            ray.wait(built, num_returns=len(built), timeout=60)
        self._look()
        return [slot.place.pid if slot.place is not None else -1 for slot in self.slots]

    def _begin(self, slot: Slot) -> None:
        """Start a fresh actor for `slot`."""
        own = arguments_of(self._kwargs, slot.index, slot.replaced)
        slot.actor = self._start(slot, own, self._files)
        slot.placed = slot.actor.place.remote()
        slot.built = slot.actor.build.remote()
        slot.ready, slot.place, slot.rest_until = False, None, 0.0
        slot.deadline = time.monotonic() + self.timeout_seconds

    def _rest(self, slot: Slot) -> float:
        """Start no actor for `slot` for a while, longer each time; returns the seconds."""
        seconds: float = min(REST_SECONDS * 2 ** (slot.deaths - 1), LONGEST_REST_SECONDS)
        slot.actor = slot.placed = slot.built = slot.place = None
        slot.rest_until = time.monotonic() + seconds
        slot.deadline = slot.rest_until + self.timeout_seconds
        return seconds

    def _look(self) -> None:
        """See which workers that were being started are ready, and replace those that died meanwhile."""
        import ray

        for slot in self.starting():
            if slot.rest_until and time.monotonic() >= slot.rest_until:
                self._begin(slot)
        waiting = {slot.built: slot for slot in self.starting() if not slot.rest_until}
        if not waiting:
            return
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for ref in done:
            slot = waiting[ref]
            try:
                slot.place = ray.get(slot.placed, timeout=30)
                ray.get(ref, timeout=30)
            except Exception as error:  # of any kind: it becomes one of ours
                failure = translate(error, f"{self.name} {slot.index}: start", place=slot.place)
                if isinstance(failure, WorkerLostError):
                    self.replace(slot, failure)
                    continue
                slot.broken = failure
                if slot.place is None:
                    self._give_up(slot, failure)
                    continue
            # A constructor that raised raises again at the first call, which reports it.
            slot.ready = True
            if slot.replaced:
                self._on_warning(f"{self.name} {slot.index} is back: {slot.place}")

    def hand_out(self) -> None:
        """Give held calls to workers that are ready for them."""
        self._look()
        still: list[RayCall] = []
        for call in self._held:
            slot = self._choose(call)
            if slot is not None:
                call.slot = slot
                call.ref = slot.actor.call.remote(call.method, call.args, call.report, call.files)
                slot.open.append(call)
            elif call.failure is None:
                still.append(call)
        self._held = still

    def _choose(self, call: RayCall) -> Slot | None:
        """The worker for a held call; None while there is none, or (with `failure` set) when there never will be."""
        able = self.slots if call.pinned is None else [self.slots[call.pinned]]
        ready = [slot for slot in able if slot.ready]
        if ready:
            return min(ready, key=lambda slot: len(slot.open))
        left = [slot for slot in able if not slot.gone]
        if not left:
            reasons = "; ".join(dict.fromkeys(slot.gone for slot in able))
            call.failure = PlacementError(
                f"{call.label}: no worker is left: {reasons}. Fix: look at the workers' logs in Ray's session folder "
                "for what ends them (memory?), then `pawl resume`"
            )
        elif all(time.monotonic() > slot.deadline for slot in left):
            call.failure = self.not_placed(left, self.timeout_seconds, call.label)
        return None

    def not_placed(self, slots: Sequence[Slot], timeout_seconds: float, what: str) -> PawlError:
        """The error for workers that were not placed, or not built, in time."""
        import ray

        begun = [s.placed for s in slots if s.placed is not None]
        placed = ray.wait(begun, num_returns=len(begun), timeout=0)[0] if begun else []
        loading = f"{len(placed)} of them loading still" if placed else "none of them runs yet"
        return PlacementError(
            explain(
                f"{what}: {len(slots)} of {self.size} {self.name} workers were "
                f"not placed or did not load in time ({loading}); each asks for {self.resources}; {what_there_is()}",
                value=timeout_seconds,
                where="cluster.start_timeout_seconds",
                fix=(
                    "free the resources, ask for less, add a node, or wait longer; the workers' "
                    "logs are in Ray's session folder (logs/)"
                ),
            )
        )

    def finished(self, call: RayCall) -> None:
        """The worker answered: it has one call less, and is well."""
        if call.slot is not None and call in call.slot.open:
            call.slot.open.remove(call)
            call.slot.deaths = 0

    def lost(self, call: RayCall, error: WorkerLostError) -> PawlError:
        """The worker of `call` is lost: replace it once, and say how the call itself fared."""
        if call.slot is not None and call in call.slot.open:
            self.replace(call.slot, error)
        return call.failure if call.failure is not None else error

    def replace(self, slot: Slot, error: WorkerLostError) -> None:
        """Put a fresh actor in the place of a lost one; its open calls fail, all but the first as not started."""
        import ray

        with contextlib.suppress(Exception):  # it may be dead, or only out of reach
            ray.kill(slot.actor, no_restart=True)
        running = True
        for call in slot.open:
            if _has_answer(call.ref):
                continue
            label = call.label
            if running:
                call.failure = (
                    error if str(error).startswith(label) else WorkerLostError(f"{label}: {error}")
                )
            else:
                call.failure = CallNotStartedError(f"{label}: not started, because of {error}")
            running = False
        slot.open.clear()
        slot.ready = False
        slot.deaths += 1
        slot.replaced += 1
        if slot.deaths > self.max_restarts:
            told = f"died {slot.deaths} times in a row (cluster.max_restarts: {self.max_restarts})"
            self._give_up(slot, WorkerLostError(f"{self.name} {slot.index} {told}, last: {error}"))
            return
        if isinstance(error, WorkerMemoryError):
            soon = f"in {self._rest(slot):g} s, when the node may have memory again"
        else:
            soon = "at once"
            self._begin(slot)
        self._on_warning(f"{error}; a fresh worker takes its place {soon} ({slot.deaths} in a row)")

    def _give_up(self, slot: Slot, error: PawlError) -> None:
        slot.ready, slot.gone, slot.broken = False, str(error), error
        self._on_warning(f"{self.name} {slot.index} is given up: {error}")


def _has_answer(ref: Any) -> bool:
    """Tell whether a call of a dead worker had been answered before it died."""
    import ray

    done, _ = ray.wait([ref], timeout=0)
    if not done:
        return False
    try:
        ray.get(ref, timeout=5)
    except ray.exceptions.RayTaskError:
        return True
    except ray.exceptions.RayError:  # lost with its worker
        return False
    return True


def what_there_is() -> str:
    """Return what the cluster has and what of it is free, for messages."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = sorted(
        k for k in total if not k.startswith(("node:", "bundle_", "object_store_memory"))
    )
    has = ", ".join(
        f"{free.get(k, 0.0):g} of {total[k]:g} {k}"
        for k in kinds
        if k != "memory" and "_group_" not in k
    )
    alive = sum(1 for node in ray.nodes() if node["Alive"])
    return f"free now on {alive} node(s): {has or 'nothing'}"
