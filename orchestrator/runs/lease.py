"""The right to drive a run: a lease with an epoch that only grows, its heartbeat, and the judgement of who is alive.

`<run>/epochs/000003.json` is the claim of epoch 3: made exclusively, once, and never changed, so two processes never
hold one epoch. `000003.beat` beside it is its heartbeat, which only its driver writes; `<run>/driver.json` repeats it
for people. A driver asks its `Fence` before each commit: when a later claim exists it has been replaced, and stops. A
commit holds the run meanwhile (`claim_lock`), where the file system has locks; what the journal says is right without.

A process number tells something only to who sees the same processes: the boot id and the pid namespace of the claim
must be the reader's own. Whoever is elsewhere (another host, also one of the same name, or another container) is known
by the heartbeat alone, which is watched by this process's own monotonic clock.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.runs.claim_lock import locked
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import BEAT_SUFFIX, HEAD_SUFFIX
from policies.base.errors import LeaseError, StorageError
from policies.base.machine_identity import boot_id, pid_namespace, seconds_since_boot
from policies.base.process_identity import process_start
from policies.base.records import Record
from policies.storage import files

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a driver says that it is alive."""
LOCK = "lock"
"""Name of the lock file beside the claims."""
MISSED_BEATS = 3
"""After so many missed heartbeats a driver whose process cannot be seen from here is taken for dead."""


_CLAIM_NAME = re.compile(r"([0-9]{1,18})\.json")


class Claim(Record):
    """A driver's claim on a run. Example: `Claim(epoch=3, host="node7", boot_id="0c1d..", pid_namespace="pid:[40..]",
    pid=812, pid_started=90113, heartbeat=1763.., beats=12)`.
    """

    epoch: int = 0
    host: str
    boot_id: str = ""
    """Which start of which kernel: tells hosts of one name apart. Empty: by an older Pawl, or not told there."""
    pid_namespace: str = ""
    """Whose process numbers: tells containers on one host apart. Empty: by an older Pawl, or not told there."""
    pid: int
    pid_started: int | None = None
    """Start time of the process in clock ticks since boot: tells it from a later one of the same number."""
    heartbeat: float = 0.0
    """When it was last heard of, in seconds since 1970 by its own clock."""
    heartbeat_boot: float = 0.0
    """The same in seconds since the kernel started, for readers of the same boot: nobody sets that clock."""
    beats: int = 0
    """Heartbeats so far: others watch whether this grows, which needs no common clock."""
    released: bool = False
    """The driver has ended its work, although its process may live on (a notebook, a test)."""


@dataclass(frozen=True)
class Fence:
    """Lets the holder of an epoch commit, as long as nobody has claimed a later one."""

    path: Path
    """The folder `epochs/` of the run."""
    epoch: int

    @property
    def claim_path(self) -> Path:
        """The claim of this epoch."""
        return _claim_path(self.path, self.epoch)

    @property
    def head_path(self) -> Path:
        """Tell where this epoch says how far the journal goes; nobody else writes it."""
        return self.claim_path.with_suffix(HEAD_SUFFIX)

    def __call__(self) -> None:
        """Return when this process still holds the run.

        Raises:
            LeaseError: another process has taken the run over.
        """
        latest = _last_epoch(self.path)
        if latest > self.epoch:
            raise LeaseError(
                f"this process lost the run to {_name(_read(_claim_path(self.path, latest)))} (epoch {latest} after "
                f"{self.epoch}): it commits nothing more. Fix: nothing to do where that one goes on; else `pawl resume`"
            )

    @contextmanager
    def holding(self) -> Iterator[bool]:
        """Hold the run for a commit: asked once, and nobody takes the run over inside. Gives False where the file
        system has no locks: then somebody may, between the check and the change.

        Raises:
            LeaseError: another process has taken the run over.
        """
        with locked(self.path / LOCK, alone=False) as is_locked:
            self()
            yield is_locked


class Lease:
    """Holds a run for this process until `release`."""

    def __init__(self, folder: RunFolder, claim: Claim, beat_seconds: float) -> None:
        self.folder = folder
        self.claim = claim
        self.fence = Fence(folder.epochs, claim.epoch)
        self._beat_path = self.fence.claim_path.with_suffix(BEAT_SUFFIX)
        self._beat_seconds = beat_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop the heartbeat and say that the run is free. Whoever dies before is found dead."""
        self._ended.set()
        self._thread.join(timeout=60)
        freed = self.claim.model_copy(update={"released": True})
        try:
            self._tell(freed)
        except (
            OSError,
            LeaseError,
            StorageError,
        ) as error:  # nothing hangs on it but the next one's patience
            logger.warning("%s could not be marked as free: %s", self.folder.path, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                self.claim = self.claim.model_copy(
                    update={"beats": self.claim.beats + 1, **_clocks()}
                )
                self._tell(self.claim)
            except LeaseError as error:  # the driver hears it at its next commit
                logger.warning("%s", error)
                return
            except (OSError, StorageError) as error:  # the next commit, or the next beat, tells
                logger.warning("the heartbeat could not be written: %s", error)

    def _tell(self, state: Claim) -> None:
        """Write the heartbeat: first where only this driver writes, then where people look."""
        value = state.model_dump(mode="json")
        self.fence()
        if self.fence.head_path.exists():  # a beat without a head is how a lost head is noticed
            files.write_json(self._beat_path, value)
        files.write_json(self.folder.driver, value)


def claim(
    folder: RunFolder,
    *,
    on_takeover: Callable[[str], None] = lambda message: None,
    beat_seconds: float = BEAT_SECONDS,
) -> Lease:
    """Take the run for this process, in a new epoch.

    A dead driver whose process can be seen from here is replaced at once; one of another host or container when its
    heartbeat stood still for three beats, which are waited for here. `on_takeover` is told who was replaced.

    Raises:
        LeaseError: another process drives the run and is alive, or was faster.
    """
    seen = _last_epoch(folder.epochs)
    before = _told(folder, seen)
    is_replaced = before is not None and not before.released and not _is_mine(before)
    if before is not None and is_replaced:
        _check_dead(folder, before, beat_seconds)
    mine = Claim(
        epoch=seen + 1,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        pid=os.getpid(),
        pid_started=process_start(os.getpid()),
    ).model_copy(update=_clocks())
    files.make_directory(folder.epochs)
    with locked(folder.epochs / LOCK, alone=True):
        _make(folder, mine)
    if is_replaced:
        on_takeover(f"took the run over from {_name(before)}, which is gone")
    files.write_json(folder.driver, mine.model_dump(mode="json"))
    return Lease(folder, mine, beat_seconds)


def _make(folder: RunFolder, mine: Claim) -> None:
    """Make the claim, unless somebody claimed since the last driver was judged.

    Raises:
        LeaseError: somebody did.
    """
    path = _claim_path(folder.epochs, mine.epoch)
    text = json.dumps(mine.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    if not files.create_exclusively(path, text.encode()):
        raise LeaseError(
            f"{folder.path} was claimed by {_name(_read(path))} at this moment. "
            "Fix: wait for it, or stop it, then `pawl resume`"
        )


def _clocks() -> dict[str, float]:
    return {"heartbeat": round(time.time(), 3), "heartbeat_boot": round(seconds_since_boot(), 3)}


def _check_dead(folder: RunFolder, before: Claim, beat_seconds: float) -> None:
    """Return when `before` does not live any more.

    Raises:
        LeaseError: it does.
    """
    if _lives_here(before) if is_visible(before) else _beats(folder, before, beat_seconds):
        where = before.host if is_visible(before) else f"{before.host}, {_place(before)}"
        raise LeaseError(
            f"{folder.path} is driven by {_name(before)}. Fix: wait for it, or stop it with "
            f"`kill -INT {before.pid}` on {where}"
        )


def _beats(folder: RunFolder, before: Claim, beat_seconds: float) -> bool:
    """Watch the heartbeat of a driver whose process cannot be seen from here; True as soon as it moves."""
    logger.warning(
        "%s was driven by %s; watching for %g s whether it still is",
        folder.path,
        _name(before),
        MISSED_BEATS * beat_seconds,
    )
    deadline = time.monotonic() + MISSED_BEATS * beat_seconds
    while time.monotonic() < deadline:
        time.sleep(beat_seconds / 5)
        now = latest_claim(folder)
        if now is not None and now.released and now.epoch == before.epoch:
            return False
        if now is not None and (now.epoch, now.beats) != (before.epoch, before.beats):
            return True
    return False


def is_alive(folder: RunFolder, now: float | None = None) -> bool:
    """Tell whether somebody drives the run, as far as can be told without waiting.

    A process that can be seen from here is looked for; a driver elsewhere is believed while its heartbeat is not older
    than three beats: by the kernel's own clock inside one boot, else by its wall clock and ours.
    """
    found = latest_claim(folder)
    if found is None or found.released:
        return False
    if is_visible(found):
        return _lives_here(found)
    if not found.heartbeat:  # by an older Pawl, which had none
        return True
    return seconds_silent(found, now) <= MISSED_BEATS * BEAT_SECONDS


def seconds_silent(found: Claim, now: float | None = None) -> float:
    """Seconds since the last heartbeat."""
    if now is None and found.heartbeat_boot and found.boot_id and found.boot_id == boot_id():
        return seconds_since_boot() - found.heartbeat_boot
    return (now or time.time()) - found.heartbeat


def latest_claim(folder: RunFolder) -> Claim | None:
    """The last claim on a run, with its last heartbeat; None when there is none that can be read."""
    return _told(folder, _last_epoch(folder.epochs))


def _told(folder: RunFolder, epoch: int) -> Claim | None:
    path = _claim_path(folder.epochs, epoch)
    seen = _read(folder.driver)
    of_epoch = [_read(path.with_suffix(BEAT_SUFFIX)), _read(path)] if epoch else []
    told = [c for c in (seen, *of_epoch) if c is not None and c.epoch >= epoch]
    return max(told, key=lambda c: (c.epoch, c.released, c.beats), default=None)


def is_visible(found: Claim) -> bool:
    """Tell whether the process numbers that this process sees tell anything about the driver that claimed."""
    if found.boot_id and found.pid_namespace:
        return (found.boot_id, found.pid_namespace) == (boot_id(), pid_namespace())
    if found.heartbeat and sys.platform == "linux":  # it beats, so it need not be looked for
        return False
    return found.host == socket.gethostname()


def _lives_here(found: Claim) -> bool:
    started = process_start(found.pid)
    if started is not None:
        return found.pid_started in (None, started)
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and /proc does not show other users' processes
        return True
    return not Path(
        "/proc/self"
    ).exists()  # no /proc: the number must do. Else it has ended, and nobody took notice


def _is_mine(found: Claim) -> bool:
    """Tell whether this very process made the claim: a run may be resumed where it failed."""
    me = (os.getpid(), process_start(os.getpid()))
    return is_visible(found) and (found.pid, found.pid_started) == me


def _last_epoch(epochs: Path) -> int:
    try:
        names = os.listdir(epochs)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    found = [match for name in names if (match := _CLAIM_NAME.fullmatch(name))]
    return max((int(match[1]) for match in found), default=0)


def _claim_path(epochs: Path, epoch: int) -> Path:
    return epochs / f"{epoch:06d}.json"


def _read(path: Path) -> Claim | None:
    """A claim, or None when there is none or it was cut off while being written: its process is dead then.

    Raises:
        StorageError: it cannot be read now, which says nothing of whether its process lives.
    """
    try:
        with files.storage(path):
            return Claim.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _name(found: Claim | None) -> str:
    if found is None:
        return "another process"
    where = "" if is_visible(found) else f", {_place(found)}"
    return f"process {found.pid} on {found.host} (epoch {found.epoch}{where})"


def _place(found: Claim) -> str:
    """Tell where a driver is whose process number means nothing here."""
    if found.boot_id and found.boot_id == boot_id():
        return f"in another container, {found.pid_namespace}"
    if found.host == socket.gethostname():
        return "another machine or start of this name"
    return "another machine"
