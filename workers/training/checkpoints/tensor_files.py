"""Files of tensors: what the disk refuses of them is told as that, and they are looked at before anything vouches.

Libraries write these files, so nobody of ours counts what the disk took of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from policies.base.errors import StorageError, explain
from policies.storage.files import storage_error

if TYPE_CHECKING:
    from torch import Tensor

_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How safetensors, which is written in Rust, ends the message of an error of the system."""
_LENGTH_BYTES = 8
"""What a safetensors file begins with: the length of its header, little-endian."""


@contextmanager
def refusals_told(path: Path) -> Iterator[None]:
    """Turn what the disk refuses a library into an error that is worth another try; other errors pass.

    Raises:
        StorageError: no room, no permission, a read-only or failing disk.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        told = storage_error(error, error.filename or path)
        if told is None:
            raise
        raise told from error
    except SafetensorError as error:
        number = _ERROR_NUMBER.search(str(error))
        told = storage_error(OSError(int(number[1]), ""), path) if number else None
        if told is None:
            raise
        raise told from error


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that is whole; not durable yet.

    Raises:
        StorageError: the disk refused, or took only a part.
    """
    from safetensors.torch import save_file

    with refusals_told(path):
        save_file(tensors, path)
        check_whole(path)


def check_whole(path: Path) -> None:
    """Compare the size of a safetensors file with what its header promises.

    Source: the format's description, https://github.com/huggingface/safetensors#format

    Raises:
        StorageError: bytes are missing, or there are too many.
    """
    import json

    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
            if length > size:
                raise ValueError("it ends inside its header")
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        promised = _LENGTH_BYTES + length + max(ends, default=0)
        if promised != size:
            raise ValueError(f"it has {size} bytes, and its header promises {promised}")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            explain(
                f"a file of tensors was not written whole: {error}",
                value=str(path),
                where="the place of the run folder",
                fix="check the disk and make room; then `pawl resume`",
            )
        ) from error
