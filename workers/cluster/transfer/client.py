"""The worker's end of the file transfer, on a node without the run folder: fetches what a call reads, brings what it
made.

A fetched file lies at the path that it has on the driver's node, with the same time of change, so a worker reads it as
if the folder were shared, and what has not changed is not fetched again. Every file is compared by size and sha256
before it gets its name. A file outside the run folder (a model) is never replaced by another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from policies.base.errors import ArtifactError, InputError, PawlError, WorkerLostError, explain
from policies.storage import files
from policies.storage.artifacts import file_sha256
from workers.cluster.heartbeat import report_progress
from workers.cluster.seam import Files
from workers.cluster.transfer.cache import Copies
from workers.cluster.transfer.live_upload import LiveFiles
from workers.cluster.transfer.server import PIECE_BYTES, FileFact, files_at, uploading

logger = logging.getLogger(__name__)

TRIES = 2
"""At one file, when what arrived is not what was sent."""


class Ask(Protocol):
    """Asks the server: `ask("piece", path, 0, 100)`. Raises its errors, and WorkerLostError when it does not answer."""

    def __call__(self, method: str, *args: object) -> object: ...


class TransferClient:
    """Moves files between this node and the driver's."""

    def __init__(self, ask: Ask, root: Path, name: str) -> None:
        """`name` tells this worker's uploads from those of all others."""
        self.ask = ask
        self._root = root
        self._name = name
        self._uploads = itertools.count(1)
        self._copies = Copies(root)
        self._known: dict[str, tuple[FileFact, int]] = {}
        """Files outside the run folder that were found to be the driver's, with their time of change here."""

    @contextmanager
    def transferring(self, report: str, wanted: Files) -> Iterator[None]:
        """Have what a call reads, follow what it writes, and bring what it made, also when it failed.

        Raises:
            WorkerLostError: the driver's node did not give or take a piece in time.
            InputError: another file lies where a model of the run should go.
            StorageError: this node's disk refuses.
        """
        with LiveFiles(self, report, wanted.live) as live:
            self.fetch(wanted.reads)
            live.begin()
            try:
                yield
            except BaseException:
                # Why the call failed matters more than what cannot be sent of it.
                with contextlib.suppress(PawlError, OSError):
                    live.end(with_folders=True)
                with contextlib.suppress(PawlError, OSError):
                    self.bring(wanted.writes, between=live.tell)
                raise
            live.end(with_folders=False)
            self.bring(wanted.writes, between=live.tell)

    # --- from the driver's node

    def fetch(self, paths: Sequence[str]) -> None:
        """Have `paths` here as the driver's node has them; what only the calls before needed is removed.

        A folder of the run loses what the driver's has not: training workers must find the same checkpoints.
        """
        self._copies.use(paths)
        for path in paths:
            with self._copies.fetching(path):
                facts = self.ask_facts([path])
                for fact in facts:
                    if not self._is_here(fact):
                        self._bring_here(fact)
                self._copies.keep_only(Path(path), {Path(fact.path) for fact in facts})
        self._copies.drop_unused()

    def refetch_damaged(self, paths: Sequence[str]) -> bool:
        """Fetch again what changed on this node's disk since it was fetched; says whether something had."""
        damaged = False
        for path in paths:
            with self._copies.fetching(path):
                for fact in self.ask_facts([path]):
                    here = Path(fact.path)
                    if not here.is_relative_to(self._root):  # a model: it is the node's, too
                        continue
                    if not here.is_file() or file_sha256(here) != self.ask("sha256", fact.path):
                        logger.warning(
                            "%s was damaged on this node and is fetched again", fact.path
                        )
                        self._bring_here(fact)
                        damaged = True
        return damaged

    def ask_facts(self, paths: Sequence[str]) -> list[FileFact]:
        """Return what the driver's node has at and below `paths`."""
        found = self.ask("facts", list(paths))
        assert isinstance(found, list)
        return [FileFact(*fact) for fact in found]

    def _is_here(self, fact: FileFact) -> bool:
        """Tell whether the file lies here as it lies there."""
        path = Path(fact.path)
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        ours = path.is_relative_to(self._root)
        if ours and (status.st_size, status.st_mtime_ns) == (fact.size, fact.mtime_ns):
            return True
        if self._known.get(fact.path) == (fact, status.st_mtime_ns):
            return True
        same = status.st_size == fact.size and file_sha256(path) == self.ask("sha256", fact.path)
        if same and ours:
            os.utime(path, ns=(fact.mtime_ns, fact.mtime_ns))
        elif same:
            self._known[fact.path] = (fact, status.st_mtime_ns)
        elif not ours:
            raise InputError(
                explain(
                    "on a node that does not share the run folder another file lies where one of the run's models "
                    "should go",
                    value=fact.path,
                    where="policy.model, or the model of a judge",
                    fix="put the same model there, or remove it from the node: it is then fetched",
                )
            )
        return same

    def _bring_here(self, fact: FileFact) -> None:
        for _ in range(TRIES):
            if self._fetch_once(fact):
                return
        raise WorkerLostError(
            f"{fact.path} changed on its way from the driver's node, or while it was read, {TRIES} times. "
            "Fix: check the network and the disks; the work is handed out again"
        )

    def _fetch_once(self, fact: FileFact) -> bool:
        """Fetch a file; says whether it is whole."""
        path = Path(fact.path)
        temporary = uploading(path, f"{self._name}-{threading.get_ident()}")
        digest, offset = hashlib.sha256(), 0
        with files.storage(path):
            files.make_directory(path.parent)
            files.remove_file(temporary)
            try:
                while True:
                    data = self.ask("piece", fact.path, offset, PIECE_BYTES)
                    assert isinstance(data, bytes)
                    files.current().append(temporary, data)
                    digest.update(data)
                    offset += len(data)
                    report_progress(fetched_mb=len(data) / 1e6)
                    if len(data) < PIECE_BYTES:
                        break
                if offset != fact.size or digest.hexdigest() != self.ask("sha256", fact.path):
                    return False
                files.sync_or_remove(temporary)
                os.utime(temporary, ns=(fact.mtime_ns, fact.mtime_ns))
                files.move(temporary, path)
            finally:
                files.remove_file(temporary)
        return True

    # --- to the driver's node

    def bring(self, paths: Sequence[str], *, between: Callable[[], None] = lambda: None) -> None:
        """Send files and folders that a call made, and remove them here: they are the driver's to commit."""
        for path in map(Path, paths):
            if path.is_dir():
                for each in files_at(path):
                    self.send(each, each, between=between)
                files.remove_tree(path)
            elif path.exists():
                self.send(path, path, between=between)
                files.remove_file(path)

    def send(
        self, source: Path, target: Path, *, between: Callable[[], None] = lambda: None
    ) -> None:
        """Send one file; it gets its name on the driver's node when all of it arrived. `between` pieces may raise."""
        upload, digest, offset = self.next_upload(), hashlib.sha256(), 0
        with source.open("rb") as handle:
            while True:
                data = handle.read(PIECE_BYTES)
                self.ask("put", str(target), upload, offset, data)
                digest.update(data)
                offset += len(data)
                report_progress(sent_mb=len(data) / 1e6)
                between()
                if len(data) < PIECE_BYTES:
                    break
        self.ask("settle", str(target), upload, offset, digest.hexdigest())

    def next_upload(self) -> str:
        """A name that no other upload of the run has."""
        return f"{self._name}-{next(self._uploads)}"

    def close(self) -> None:
        """Remove the copies that no other worker of this node uses."""
        with contextlib.suppress(OSError, ArtifactError):
            self._copies.use(())
            self._copies.drop_unused()
