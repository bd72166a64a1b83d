"""Who drives a run: a lease with an epoch that only grows, its heartbeat, and the one judgement of who is alive.

`<run>/epochs/000003.json` is the claim of epoch 3: made exclusively, once, and never changed, so two processes never
hold one epoch. `<run>/driver.json` repeats it with a heartbeat, for people and other hosts. A driver asks its `Fence`
before each commit: when a later claim exists it has been replaced, and stops. No `flock`: network file systems
have taken that lightly.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.run_folder import RunFolder
from policies import files
from policies.errors import LeaseError, StorageError
from policies.processes import process_start
from policies.records import Record

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often a driver says that it is alive."""
MISSED_BEATS = 3
"""After so many missed heartbeats a driver on another host is taken for dead."""


class Claim(Record):
    """A driver's claim on a run. Example: `Claim(epoch=3, host="node7", pid=812, pid_started=90113,
    heartbeat=1763.., beats=12)`.
    """

    epoch: int = 0
    host: str
    pid: int
    pid_started: int | None = None
    """Start time of the process in clock ticks since boot: tells it from a later one of the same number."""
    heartbeat: float = 0.0
    """When it was last heard of, in seconds since 1970 by its own clock."""
    beats: int = 0
    """Heartbeats so far: another host watches whether this grows, which needs no common clock."""
    released: bool = False
    """The driver has ended its work, although its process may live on (a notebook, a test)."""


@dataclass(frozen=True)
class Fence:
    """Lets the holder of an epoch commit, as long as nobody has claimed a later one."""

    path: Path
    """The folder `epochs/` of the run."""
    epoch: int

    def __call__(self) -> None:
        """Return when this process still holds the run.

        Raises:
            LeaseError: another process has taken the run over.
        """
        later = _claim_path(self.path, self.epoch + 1)
        if later.exists():
            raise LeaseError(
                f"this process lost the run to {_name(_read(later))} (epoch {self.epoch + 1} after "
                f"{self.epoch}): it commits nothing more. Fix: nothing to do where that one goes on; else `pawl resume`"
            )


class Lease:
    """Holds a run for this process until `release`."""

    def __init__(self, folder: RunFolder, claim: Claim, beat_seconds: float) -> None:
        self.folder = folder
        self.claim = claim
        self.fence = Fence(folder.epochs, claim.epoch)
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
            self.fence()
            files.write_json(self.folder.driver, freed.model_dump(mode="json"))
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
                self.fence()
                beats = self.claim.beats + 1
                update = {"beats": beats, "heartbeat": round(time.time(), 3)}
                self.claim = self.claim.model_copy(update=update)
                files.write_json(self.folder.driver, self.claim.model_dump(mode="json"))
            except LeaseError as error:  # the driver hears it at its next commit
                logger.warning("%s", error)
                return
            except (OSError, StorageError) as error:  # the next commit, or the next beat, tells
                logger.warning("the heartbeat could not be written: %s", error)


def claim(
    folder: RunFolder,
    *,
    on_takeover: Callable[[str], None] = lambda message: None,
    beat_seconds: float = BEAT_SECONDS,
) -> Lease:
    """Take the run for this process, in a new epoch.

    A dead driver of this host is replaced at once; one of another host when its heartbeat stood still for three beats,
    which are waited for here. `on_takeover` is told who was replaced.

    Raises:
        LeaseError: another process drives the run and is alive, or was faster.
    """
    before = latest_claim(folder)
    if before is not None and not before.released and not _is_mine(before):
        _check_dead(folder, before, beat_seconds)
        on_takeover(f"took the run over from {_name(before)}, which is gone")
    epoch = _last_epoch(folder) + 1
    mine = Claim(
        epoch=epoch,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=process_start(os.getpid()),
        heartbeat=round(time.time(), 3),
    )
    text = json.dumps(mine.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    if not files.create_exclusively(_claim_path(folder.epochs, epoch), text.encode()):
        raise LeaseError(
            f"{folder.path} was claimed by {_name(_read(_claim_path(folder.epochs, epoch)))} at this moment. "
            "Fix: wait for it, or stop it, then `pawl resume`"
        )
    files.write_json(folder.driver, mine.model_dump(mode="json"))
    return Lease(folder, mine, beat_seconds)


def _check_dead(folder: RunFolder, before: Claim, beat_seconds: float) -> None:
    """Return when `before` does not live any more.

    Raises:
        LeaseError: it does.
    """
    if before.host == socket.gethostname():
        alive = _lives_here(before)
    else:
        alive = _beats(folder, before, beat_seconds)
    if alive:
        raise LeaseError(
            f"{folder.path} is driven by {_name(before)}. Fix: wait for it, or stop it with "
            f"`kill -INT {before.pid}` on {before.host}"
        )


def _beats(folder: RunFolder, before: Claim, beat_seconds: float) -> bool:
    """Watch the heartbeat of a driver on another host; True as soon as it moves."""
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
        if now is not None and (now.epoch, now.beats) != (before.epoch, before.beats):
            return True
    return False


def is_alive(folder: RunFolder, now: float | None = None) -> bool:
    """Whether somebody drives the run, as far as can be told without waiting.

    On this host the process is looked for; a driver elsewhere is believed while its heartbeat, by its own clock, is
    not older than three beats.
    """
    found = latest_claim(folder)
    if found is None or found.released:
        return False
    if found.host == socket.gethostname():
        return _lives_here(found)
    if not found.heartbeat:  # by an older Pawl, which had none
        return True
    return (now or time.time()) - found.heartbeat <= MISSED_BEATS * BEAT_SECONDS


def latest_claim(folder: RunFolder) -> Claim | None:
    """The last claim on a run, with its last heartbeat; None when there is none that can be read."""
    epoch = _last_epoch(folder)
    seen = _read(folder.driver)
    claimed = _read(_claim_path(folder.epochs, epoch)) if epoch else None
    if seen is not None and seen.epoch >= epoch:
        return seen
    return claimed


def _lives_here(found: Claim) -> bool:
    if Path("/proc/self").exists():
        started = process_start(found.pid)
        return started is not None and found.pid_started in (None, started)
    try:  # no /proc: the number must do
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True


def _is_mine(found: Claim) -> bool:
    """Whether this very process made the claim: a run may be resumed where it failed."""
    return found.host == socket.gethostname() and found.pid == os.getpid()


def _last_epoch(folder: RunFolder) -> int:
    return max((int(p.stem) for p in folder.epochs.glob("[0-9]*.json")), default=0)


def _claim_path(epochs: Path, epoch: int) -> Path:
    return epochs / f"{epoch:06d}.json"


def _read(path: Path) -> Claim | None:
    """A claim, or None when there is none or it was cut off while being written: its process is dead then."""
    try:
        return Claim.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _name(found: Claim | None) -> str:
    return (
        "another process"
        if found is None
        else f"process {found.pid} on {found.host} (epoch {found.epoch})"
    )
