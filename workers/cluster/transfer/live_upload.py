"""Sends what must reach the driver's node while a call still runs: signs of life, the training log, whole checkpoints.

Without the first a healthy worker would be ended as silent; without the last a trainer that is replaced on another node
would begin again. A thread sends what changed about once a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

from policies.base.errors import PawlError
from policies.storage import files
from workers.cluster.transfer.server import PIECE_BYTES, uploading

logger = logging.getLogger(__name__)

SEND_SECONDS = 1.0
"""How often a call's live files are looked at."""


class Sender(Protocol):
    """The client of the driver's node, as what is sent meanwhile needs it."""

    def ask(self, method: str, *arguments: object) -> object:
        """Call a method of the driver's node."""
        ...

    def send(
        self, source: Path, target: Path, *, between: Callable[[], None] = lambda: None
    ) -> None:
        """Send one file."""
        ...

    def next_upload(self) -> str:
        """A name that no other upload of the run has."""
        ...


class LiveFiles:
    """Follows one call's files. A context manager: entered, it sends signs of life; after `begin`, the rest too."""

    def __init__(self, client: Sender, report: str, live: Sequence[str]) -> None:
        self._client = client
        self._report = Path(report) if report else None
        self._live = [Path(path) for path in live]
        self._told: bytes = b""
        self._told_at = 0.0
        self._sizes: dict[Path, int] = {}
        """How much of each growing file has been sent."""
        self._folders: set[Path] = set()
        """Parts of live folders that the driver's node has."""
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="live-upload", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def begin(self) -> None:
        """From now on the call writes; what lies in its live folders was fetched."""
        self._folders = {part for path in self._live for part in _parts(path)}
        self._begun.set()

    def end(self, *, with_folders: bool) -> None:
        """Send what is left of files, and (for another try) of folders. Signs of life need `tell` from now on."""
        self._stop()
        for path in self._live:
            if path.is_file():
                self._grow(path)
            elif with_folders:
                self._mirror(path, stopping=False)

    def __exit__(self, *exc: object) -> None:
        self._stop()
        if self._report is not None:
            with contextlib.suppress(OSError, PawlError):  # this node's, and of no use any more
                files.remove_file(self._report)

    def _stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=120)

    def _follow(self) -> None:
        while not self._ended.wait(SEND_SECONDS):
            try:
                self.tell()
                if self._begun.is_set():
                    for path in self._live:
                        if path.is_file():
                            self._grow(path)
                        else:
                            self._mirror(path, stopping=True)
            except (
                PawlError,
                OSError,
            ) as error:  # tried again in a second; the end of the call decides
                logger.warning("a live file of the call was not sent: %s", error)

    def tell(self) -> None:
        """Send the sign of life when there is a new one, at most once a second."""
        if self._report is None or time.monotonic() - self._told_at < SEND_SECONDS:
            return
        try:
            text = self._report.read_bytes()
            sign = json.loads(text)
        except (OSError, ValueError):  # nothing was said yet
            return
        if text != self._told:
            self._client.ask("tell", str(self._report), sign)
            self._told, self._told_at = text, time.monotonic()

    def _grow(self, path: Path) -> None:
        """Send what a file has grown by; all of it when it became shorter."""
        sent = self._sizes.get(path, 0)
        if path.stat().st_size < sent:
            sent = 0
        with path.open("rb") as handle:
            handle.seek(sent)
            while data := handle.read(PIECE_BYTES):
                self._client.ask("grow", str(path), sent, data)
                sent += len(data)
                self._sizes[path] = sent

    def _mirror(self, top: Path, *, stopping: bool) -> None:
        """Send parts of a folder that have appeared whole, then remove there what was removed here."""
        here = _parts(top)
        for part in sorted(here - self._folders):
            if self._send_folder(part, stopping=stopping):
                self._folders.add(part)
        for part in sorted(self._folders - here):
            self._client.ask("remove", str(part))
            self._folders.discard(part)

    def _send_folder(self, part: Path, *, stopping: bool) -> bool:
        """Send a folder that does not change any more; says whether it arrived."""
        upload = self._client.next_upload()
        there = uploading(part, upload)

        def between() -> None:
            self.tell()
            if stopping and self._ended.is_set():
                raise FileNotFoundError("the call has ended")

        try:
            for path in sorted(p for p in part.iterdir() if p.is_file()):
                self._client.send(path, there / path.name, between=between)
            self._client.ask("settle_folder", str(part), upload)
        except (
            FileNotFoundError
        ) as error:  # a newer checkpoint took its place, or nobody needs it now
            logger.info("%s is not sent: %s", part, error)
            self._client.ask("remove", str(there))
            return False
        return True


def _parts(top: Path) -> set[Path]:
    """The whole parts of a live folder: its writer renames them when they are complete."""
    if not top.is_dir():
        return set()
    return {path for path in top.iterdir() if path.is_dir() and path.name[0] != "."}
