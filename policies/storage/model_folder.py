"""Examines what lies in a model's folder, looked at by kind and size before anything of it is read or loaded.

A pipe would be waited for, a device never ends, a folder in the place of a file ends a library with a traceback, and an
index may name files outside. Links are followed (the cache of a hub consists of them); they must lead to files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from policies.base.errors import InputError, explain
from policies.storage.bounded_json import read_json

MAX_SETTINGS_BYTES = 16 << 20
"""Of config.json and what else says how a model is used: ten times the largest that is in use."""
MAX_VOCABULARY_BYTES = 64 << 20
"""Of a tokenizer's files and of the index of the weights: twice the largest in use."""
MAX_ENTRIES = 20_000
_VOCABULARIES = frozenset(
    {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"}
)
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
_INDEX_SUFFIX = ".safetensors.index.json"


def check_folder(path: Path) -> None:
    """Refuse a model's folder in which something is not what its name says.

    Raises:
        InputError: a name of a file stands for something else, a file is too large, or an index leads out.
    """
    for problem in folder_problems(path):
        raise InputError(problem)


def folder_problems(path: Path) -> Iterator[str]:
    """Yield what is wrong with the kinds and sizes of the files directly in the folder; messages in four parts."""
    try:
        with os.scandir(path) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_ENTRIES:
                    yield _said(f"the model directory holds more than {MAX_ENTRIES} files", path)
                    return
                if entry.name.endswith(_READ) and (problem := _of_file(Path(entry.path))):
                    yield problem
    except OSError as error:
        yield _said(f"the model directory cannot be read ({error.strerror})", path)
        return
    for index in sorted(path.glob(f"*{_INDEX_SUFFIX}")):
        if index.is_file():
            yield from _of_index(index)


def _of_file(path: Path) -> str | None:
    try:
        found = path.stat()
    except OSError as error:
        return _said(f"a file of the model cannot be looked at ({error.strerror})", path)
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no file")
        return _said(f"{kind} stands where a file of the model belongs", path)
    if found.st_dev in _devices_of_the_kernel():
        # A regular file by its kind, of 0 bytes by its size: it ends never, or with an error.
        return _said("what the kernel makes up stands where a file of the model belongs", path)
    if path.suffix == ".safetensors":
        return None
    is_large = path.name in _VOCABULARIES or path.name.endswith(_INDEX_SUFFIX)
    most = MAX_VOCABULARY_BYTES if is_large else MAX_SETTINGS_BYTES
    if found.st_size > most and path.suffix != ".py":
        what = f"a file of the model is larger than such a file may be ({most >> 20} MiB)"
        return _said(what, f"{path}: {found.st_size} bytes")
    return None


def _devices_of_the_kernel() -> set[int]:
    return {os.stat(place).st_dev for place in ("/proc", "/sys") if os.path.isdir(place)}


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _of_index(path: Path) -> Iterator[str]:
    """An index names files of its own folder, which are there."""
    try:
        value = read_json(path, max_bytes=MAX_VOCABULARY_BYTES)
        names = value["weight_map"].values()
        files = sorted({str(name) if isinstance(name, str) else repr(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield _said(
            f"the index of the weights cannot be read ({type(error).__name__}: {error})", path
        )
        return
    for name in files:
        plain = name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}
        if not plain or not name.endswith(".safetensors"):
            what = "the index of the weights names what is no weight file beside it"
            yield _said(what, f"{path}: {name[:200]}")
            return
        if not _is_there(path.parent / name):
            what = "a file that the index of the weights names is not there"
            yield _said(what, f"{path}: {name[:200]}")
            return


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _said(what: str, value: object) -> str:
    return explain(
        what,
        value=str(value),
        where="policy.model (or a judge's model)",
        fix="copy or download the model again, as regular files",
    )
