"""The mirror: what a run has committed, copied to a bucket after each phase, behind the driver's back.

The run folder stays the truth. The bucket follows it, in an order that makes it a run at every moment: files before the
markers and manifests that vouch for them, then `mirror/<n>.json` (name, size and sha256 of what came with this phase),
the journal last. A reader of the bucket never finds a marker without its file, nor a journal line without its files.
Nothing is removed from the bucket.

Between train and publish nothing is mirrored: the new weights are stored once, as the version they become.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.bucket_location import Location
from orchestrator.config.sections import StorageSettings
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal_reading import BEAT_SUFFIX, HEAD_SUFFIX, read_journal
from orchestrator.runs.lease import Fence
from orchestrator.runs.phases import Phase
from orchestrator.runs.removal_notes import FETCHED
from orchestrator.storage.bucket import Bucket
from orchestrator.storage.owner import claim_place, look, run_id_of
from policies.base.errors import ArtifactError, LeaseError, PawlError, StorageError, explain
from policies.storage.artifacts import file_sha256, marker_path, read_marker
from policies.storage.files import storage
from policies.storage.folder_names import is_leftover_of_others
from policies.storage.policy_store import MANIFEST

logger = logging.getLogger(__name__)

SEGMENTS = "mirror"
JOURNAL = "journal.jsonl"
LEFT_OUT = frozenset(
    {"attempts", "checkpoints", "candidate", "activity", "quarantine", "lock", FETCHED}
)
"""Drafts, what only helps on the same machine, and what is about to be published."""
MOVING = frozenset({"activity.json", "driver.json", JOURNAL})
"""Rewritten all the time, or (the journal) written last on its own."""
LONGEST_PAUSE = 30.0
_NUMBERED = re.compile(r"[a-z]+/(\d{1,12})\.json")
PATIENCE_AFTER_FAILURE = 30.0
"""Seconds that a run which failed or was interrupted gives its copy to catch up."""


@dataclass(frozen=True)
class _Snapshot:
    """The additions of one phase: files in the order in which they are to be copied, and the journal as it was then."""

    files: tuple[tuple[str, Path], ...]
    journal: bytes


class Mirror:
    """Copies a run to a bucket. One thread sends; the driver waits for it only when the backlog is full."""

    def __init__(
        self,
        settings: StorageSettings,
        folder: RunFolder,
        *,
        epoch: int,
        on_warning: Callable[[str], None] = logger.warning,
    ) -> None:
        """Look at what the bucket has, and begin to send what it lacks.

        Raises:
            ConfigurationError: the address is wrong, or the copy of another run lies there.
            LeaseError: a later driver of this run has written there.
            StorageError: the bucket cannot be read or written.
        """
        assert settings.url is not None
        self.settings = settings
        self.folder = folder
        self.epoch = epoch
        self._fence = Fence(folder.epochs, epoch)
        self.location = Location.parse(settings.url).under(folder.path.name)
        self.bucket = Bucket(self.location, settings.endpoint_url, settings.timeout_seconds)
        self._warn = on_warning
        self._seen: dict[str, tuple[int, int]] = {}
        """Size and time of change of what was handed to the thread, by name."""
        self._failure: PawlError | None = None
        self._closing_at: float | None = None
        self._queue: queue.Queue[_Snapshot | None] = queue.Queue(maxsize=settings.max_backlog)
        claim_place(self.bucket, run_id_of(folder))
        self.bucket.put(f"epochs/{epoch:06d}.json", self._claim())
        self._check_epoch()
        self._next, self._known = self._read_segments()
        self._thread = threading.Thread(target=self._send_all, name="mirror", daemon=True)
        self._thread.start()
        self._enqueue(self._snapshot(catch_up=True))

    def phase_finished(self, phase: Phase) -> None:
        """Hand over what the phase left; returns at once unless the backlog is full.

        Raises:
            StorageError: the backlog did not become shorter in time.
            ArtifactError: a file that was to be copied is damaged.
            LeaseError: a later driver of this run has written to the bucket.
        """
        if self._failure is not None:
            raise self._failure
        if phase is not Phase.TRAIN:
            self._enqueue(self._snapshot())

    def close(self, *, failed: bool) -> None:
        """Send what is left, for a bounded time.

        Raises:
            StorageError: something could not be sent (a warning when the run has `failed` anyway).
        """
        patience = self.settings.timeout_seconds
        if failed:
            patience = min(patience, PATIENCE_AFTER_FAILURE)
        self._closing_at = time.monotonic() + patience
        with contextlib.suppress(queue.Full):
            self._queue.put(self._snapshot(), timeout=patience)
            self._queue.put(None, timeout=patience)
        self._thread.join(patience)
        problem = self._failure
        if problem is None and self._thread.is_alive():
            problem = StorageError(self._behind())
        if problem is not None and not failed:
            raise problem
        if problem is not None:
            self._warn(f"{problem}")

    # --- what there is to send

    def _snapshot(self, *, catch_up: bool = False) -> _Snapshot:
        """Committed files that were not handed over before; from what the bucket had when this driver began."""
        journal = read_journal(self.folder.journal).content
        data, markers, moving = [], [], []
        for name, path, facts in self._walk():
            before = self._seen.get(name)
            if before == facts:
                continue
            self._seen[name] = facts
            if catch_up and not _is_rewritten(name) and self._is_there(name, path, facts[0]):
                continue
            if _is_rewritten(name):
                moving.append((name, path))
            elif _is_marker(path):
                markers.append((name, path))
            elif _is_committed(path):
                data.append((name, path))
            else:
                del self._seen[name]  # looked at again when its marker is there
        return _Snapshot(tuple(data + markers + moving), journal)

    def _is_there(self, name: str, path: Path, size: int) -> bool:
        """Say if the bucket has this very file: the size alone says nothing."""
        known = self._known.get(name)
        if known is None or known[0] != size:
            return False
        try:
            return known[1] == content_digest(path)
        except (ArtifactError, OSError):  # seen again where it is sent, and told there
            return False

    def _walk(self) -> Iterator[tuple[str, Path, tuple[int, int]]]:
        root = self.folder.path
        for top, directories, names in os.walk(root):
            directories[:] = sorted(
                d for d in directories if d not in LEFT_OUT and not is_leftover_of_others(d)
            )
            for name in sorted(names):
                path = Path(top, name)
                if is_leftover_of_others(name) or name[0] == "." or path.is_symlink():
                    continue
                if name in MOVING or name in LEFT_OUT:
                    continue
                if path.suffix in (HEAD_SUFFIX, BEAT_SUFFIX):  # move on before they would be sent
                    continue
                with contextlib.suppress(FileNotFoundError):  # retention, or a rewrite, was faster
                    status = path.stat()
                    relative = path.relative_to(root).as_posix()
                    yield relative, path, (status.st_size, status.st_mtime_ns)

    def _enqueue(self, snapshot: _Snapshot) -> None:
        try:
            self._queue.put(snapshot, timeout=self.settings.timeout_seconds)
        except queue.Full:
            raise StorageError(self._behind()) from None

    def _behind(self) -> str:
        return explain(
            f"the copy of the run in {self.location} is {self._queue.qsize() or 1} phase(s) behind",
            value=self.settings.timeout_seconds,
            where="storage.timeout_seconds, storage.max_backlog",
            fix="look at the server and the network; `pawl resume` sends what is missing (it is in the run folder)",
        )

    # --- the thread that sends

    def _send_all(self) -> None:
        while True:
            try:
                snapshot = self._queue.get(timeout=LONGEST_PAUSE)
            except queue.Empty:
                continue
            if snapshot is None:
                return
            try:
                self._send_patiently(snapshot)
            except (PawlError, OSError) as error:  # told to the driver at its next phase
                told = (
                    error
                    if isinstance(error, PawlError)
                    else StorageError(f"the copy failed: {error}")
                )
                self._failure = told
                return

    def _send_patiently(self, snapshot: _Snapshot) -> None:
        pause, told = 1.0, False
        while True:
            try:
                self._send(snapshot)
                return
            except StorageError as error:
                closing = self._closing_at
                if closing is not None and time.monotonic() + pause > closing:
                    raise
                if not told:
                    self._warn(
                        f"{error}. The run goes on; up to {self.settings.max_backlog} phases wait"
                    )
                    told = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self, snapshot: _Snapshot) -> None:
        """Everything in order; doing it again after a failure in the middle is harmless."""
        sent: dict[str, dict[str, object]] = {}
        for name, path in snapshot.files:
            try:
                with storage(path):
                    size = path.stat().st_size
                    digest = self.bucket.put(name, path)
            except FileNotFoundError:  # retention removed it in the meantime
                continue
            self._check_against_marker(path, digest)
            sent[name] = {"sha256": digest, "bytes": size}
        with self._fence.holding():
            self._check_epoch()
            self._put_journal(snapshot, sent)

    def _put_journal(self, snapshot: _Snapshot, sent: dict[str, dict[str, object]]) -> None:
        segment = {
            "epoch": self.epoch,
            "files": sent,
            "journal_sha256": hashlib.sha256(snapshot.journal).hexdigest(),
        }
        self.bucket.put(f"{SEGMENTS}/{self._next:06d}.json", json.dumps(segment).encode())
        self.bucket.put(JOURNAL, snapshot.journal)
        self._next += 1

    @staticmethod
    def _check_against_marker(path: Path, digest: str) -> None:
        marker = read_marker(path) if path.suffix == ".parquet" else None
        if marker is not None and marker.sha256 != digest:
            raise ArtifactError(
                f"{path} changed since it was written (sha256 differs from its marker): the bucket's journal stays "
                "before it. Fix: `pawl resume` puts it into quarantine and makes it again where it can"
            )

    def _check_epoch(self) -> None:
        """Raise `LeaseError` when a later driver has begun to write to the bucket."""
        epochs = self.bucket.names("epochs")
        later = [n for n, number in _numbered(epochs) if number > self.epoch]
        if later:
            raise LeaseError(
                f"another driver of this run writes to {self.location} ({later[-1]}; this one is epoch {self.epoch}). "
                "Fix: nothing to do where that one goes on; else resume from the bucket"
            )

    def _read_segments(self) -> tuple[int, dict[str, tuple[int, str]]]:
        """Number of the next segment, and size and sha256 of all files that are vouched for and there."""
        objects = self.bucket.names()
        known: dict[str, tuple[int, str]] = {}
        segments = _numbered(n for n in objects if n.startswith(f"{SEGMENTS}/"))
        for name, _ in segments:
            files = json.loads(self.bucket.read(name))["files"]
            known |= {key: (facts["bytes"], facts["sha256"]) for key, facts in files.items()}
        known = {name: facts for name, facts in known.items() if objects.get(name) == facts[0]}
        return max((number for _, number in segments), default=-1) + 1, known

    def _claim(self) -> bytes:
        path = self.folder.epochs / f"{self.epoch:06d}.json"
        return path.read_bytes() if path.is_file() else b"{}\n"


def is_behind(settings: StorageSettings, folder: RunFolder) -> bool:
    """Say if the bucket lacks something of a run that has ended: the journal is what is written there last.

    Raises:
        StorageError: the bucket does not answer.
    """
    bucket = look(settings, folder.path.name)
    return JOURNAL not in bucket.names() or bucket.read(JOURNAL) != folder.journal.read_bytes()


@contextmanager
def mirroring(
    settings: StorageSettings,
    folder: RunFolder,
    *,
    epoch: int,
    on_warning: Callable[[str], None],
) -> Iterator[Mirror | None]:
    """A mirror for as long as the run is driven, or None when none is configured."""
    if settings.url is None:
        yield None
        return
    mirror = Mirror(settings, folder, epoch=epoch, on_warning=on_warning)
    try:
        yield mirror
    except BaseException:
        mirror.close(failed=True)
        raise
    mirror.close(failed=False)


def _numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    """The objects that are called `<folder>/<number>.json`, with their numbers; others are not ours."""
    found = [(name, _NUMBERED.fullmatch(name)) for name in names]
    return sorted((name, int(match[1])) for name, match in found if match)


def content_digest(path: Path) -> str:
    """The sha256 of a committed file: as its marker or manifest says, else of its content."""
    if path.suffix == ".parquet":
        marker = read_marker(path)
        if marker is not None:
            return marker.sha256
    return file_sha256(path)


def _is_rewritten(name: str) -> bool:
    """Files that grow or are replaced: small, and copied again whenever they changed. Offset before spool: a line
    may be sent to the tracking server twice, never not at all.
    """
    return name == "events.jsonl" or name.startswith("tracking/")


def _is_marker(path: Path) -> bool:
    if path.name == MANIFEST:
        return True
    return path.suffix == ".json" and path.with_suffix("").suffix == ".parquet"


def _is_committed(path: Path) -> bool:
    """Tell whether what vouches for a file is there: its marker, or the manifest of its policy."""
    if path.suffix == ".parquet":
        return marker_path(path).exists()
    if path.parent.parent.name == "policies":
        return (path.parent / MANIFEST).exists()
    return True
