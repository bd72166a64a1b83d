"""Looking into whatever a run left behind: every byte and every value, and whether any of it is a pickle."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from pathlib import Path

import pyarrow.parquet as pq

_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"}
)


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def pickles_in(folder: Path) -> list[str]:
    """Files that are pickles, hold one, or are called like one."""
    return [str(p.relative_to(folder)) for p in files_of(folder) if _is_pickle(p)]


def _is_pickle(path: Path) -> bool:
    data = path.read_bytes()
    if path.suffix in _SUFFIXES or _reads_as_pickle(data):
        return True
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(_reads_as_pickle(archive.read(name)) for name in archive.namelist())


def _reads_as_pickle(data: bytes) -> bool:
    """Whether a pickle of protocol 2 or later stands at the start (earlier ones have no mark)."""
    if data[:1] != b"\x80" or data[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return False
    try:
        for _ in pickletools.genops(data):
            pass
    except ValueError:
        return False
    return True


def holding(folder: Path, secret: str) -> list[str]:
    """Files in which `secret` stands: as it is, or in a value of a compressed Parquet file."""
    return [str(p.relative_to(folder)) for p in files_of(folder) if secret in _contents(p)]


def _contents(path: Path) -> str:
    text = path.read_bytes().decode("utf-8", "replace")
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        text += json.dumps(table.to_pylist(), default=str) + str(table.schema.metadata)
    return text
