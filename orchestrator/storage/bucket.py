"""An S3-compatible bucket: the one module that speaks to object storage (through pyarrow).

An object becomes visible whole or not at all, and replaces what had its name. There is no rename, and no two objects
change together: whoever needs an order writes in that order (`orchestrator.storage.mirror`). Credentials come from
where AWS clients look for them (environment, profile, instance), never from a config.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.config.bucket_location import Location
from policies.base.errors import StorageError, explain
from policies.storage.files import current, reserve, storage

BLOCK_BYTES = 8 * 2**20


class UnreadableSourceError(StorageError):
    """The file that was being sent gives errors."""


class Bucket:
    """Objects below one location, by their names relative to it."""

    def __init__(
        self, location: Location, endpoint_url: str | None, timeout_seconds: float
    ) -> None:
        """Connect lazily: nothing is asked of the server here."""
        from pyarrow import fs

        self.location = location
        endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3")
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
        self.endpoint = endpoint
        """Address of a server of one's own; None for AWS."""
        self._files: Any = fs.S3FileSystem(
            endpoint_override=endpoint,
            # A server of one's own has no regions, and asking AWS for one would be a request to the outside.
            region=os.environ.get("AWS_REGION", "us-east-1") if endpoint else None,
            connect_timeout=min(10.0, timeout_seconds),
            request_timeout=min(60.0, timeout_seconds),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        )

    def path(self, name: str) -> str:
        return f"{self.location.bucket}/{self.location.prefix}/{name}"

    def put(self, name: str, source: Path | bytes) -> str:
        """Write an object whole; returns the sha256 of what was sent.

        Raises:
            FileNotFoundError: the file is gone; nothing was sent.
            StorageError: the server did not take it, or the file cannot be read; no part of it is left then.
        """
        digest = hashlib.sha256()
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
            block = self._next_block(
                content, name
            )  # before anything takes the place of what is there
            try:
                with self._telling(name), self._files.open_output_stream(self.path(name)) as stream:
                    while block:
                        digest.update(block)
                        if stream.write(block) != len(block):
                            raise OSError(f"it took a part of {len(block)} bytes")
                        block = self._next_block(content, name)
            except UnreadableSourceError:
                # Leaving the stream made an object of what had been sent: a part, under the name of the whole.
                with contextlib.suppress(OSError):
                    self._files.delete_file(self.path(name))
                raise
        return digest.hexdigest()

    @staticmethod
    def _next_block(content: BinaryIO, name: str) -> bytes:
        try:
            return content.read(BLOCK_BYTES)
        except OSError as error:
            raise UnreadableSourceError(
                f"{name} cannot be read to be copied ({error}). Set by: the place of the run folder. "
                "Fix: check the disk or the mount; then `pawl resume`"
            ) from error

    def read(self, name: str) -> bytes:
        """A small object.

        Raises:
            StorageError: it is not there, or the server does not answer.
        """
        with self._telling(name), self._files.open_input_stream(self.path(name)) as stream:
            content: bytes = stream.read()
            return content

    def download(self, name: str, target: Path) -> str:
        """Write an object into a file; returns the sha256 of what came.

        Raises:
            StorageError: it is not there, the server does not answer, or there is no room here.
        """
        digest = hashlib.sha256()
        reserve(target)
        with self._telling(name):
            stream = self._files.open_input_stream(self.path(name))
        with stream:
            while True:
                with self._telling(name):
                    block = stream.read(BLOCK_BYTES)
                if not block:
                    return digest.hexdigest()
                digest.update(block)
                with storage(target):
                    current().append(target, block)

    def names(self, under: str = "") -> dict[str, int]:
        """Names and sizes of the objects below a folder, sorted."""
        from pyarrow import fs

        root = self.path(under).rstrip("/")
        with self._telling(under or "the listing"):
            found = self._files.get_file_info(
                fs.FileSelector(root, recursive=True, allow_not_found=True)
            )
        start = len(self.path(""))
        return {f.path[start:]: f.size for f in sorted(found, key=lambda f: f.path) if f.is_file}

    def folders(self) -> list[str]:
        """Names of what lies directly below the location and has something in it."""
        from pyarrow import fs

        root = self.path("").rstrip("/")
        with self._telling("the listing"):
            found = self._files.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return sorted(f.base_name for f in found if not f.is_file)

    def remove(self, name: str) -> None:
        """Delete an object."""
        with self._telling(name):
            self._files.delete_file(self.path(name))

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        try:
            yield
        except (
            OSError
        ) as error:  # pyarrow's errors of the network and of the server are of this kind
            raise StorageError(
                explain(
                    f"object storage failed at {name}: {str(error)[:300]}",
                    value=str(self.location),
                    where="storage.url and storage.endpoint_url",
                    fix="check the address, the server and the credentials in the environment; then `pawl resume`",
                )
            ) from error
