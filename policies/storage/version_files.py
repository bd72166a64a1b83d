"""Files beside the weights of a model folder (tokenizer, chat template, configs): recorded, and compared before use.

They decide what the policy is asked and how its tokens are read, so a version is its weights *and* these. Recorded
are all files of a published version, and of a folder that is not ours those that a library reads on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from policies.base.records import PolicyVersion, VersionFile
from policies.storage.artifacts import file_sha256

MANIFEST = "manifest.json"
"""Ours; no file of the model."""

CHAT_TEMPLATES = "additional_chat_templates"
"""The one subfolder that tokenizers read (`CHAT_TEMPLATE_DIR` of transformers)."""

_JSON_AND_CODE = (".json", ".jinja", ".py", ".yaml", ".yml")
_VOCABULARIES = (".model", ".tiktoken", ".vocab", ".bpe", ".codes", ".spm", ".tokenizer", ".merges")
_READ_SUFFIXES = frozenset((*_JSON_AND_CODE, *_VOCABULARIES))
_READ_TEXTS = frozenset(("vocab.txt", "merges.txt", "dict.txt", "bpe.txt", "emoji.txt"))
"""`.txt` files that tokenizers of transformers and vLLM open; others are notes of people."""


def is_read(name: str) -> bool:
    """Tell whether a library opens a file of this name in a model folder by itself; weights are not meant.

    Example:
        >>> is_read("tokenizer.json"), is_read("README.md"), is_read("notes.txt"), is_read(".config.json.tmp")
        (True, False, False, False)
    """
    path = Path(name)
    if path.name.startswith(".") or name == MANIFEST:
        return False
    if len(path.parts) > 1:
        return path.parts[0] == CHAT_TEMPLATES and path.suffix == ".jinja"
    return path.suffix in _READ_SUFFIXES or path.name in _READ_TEXTS


def companions_of(directory: Path, *, ours: bool) -> tuple[VersionFile, ...]:
    """The files beside the weights, sorted by name.

    Args:
        directory: a model folder.
        ours: it holds a version that we published: every file counts. Else only what a library reads, because people
            keep other things beside a model (other formats, pictures, notes).
    """
    names = [name for name in _names(directory, ours=ours) if ours or is_read(name)]
    return tuple(fact_of(directory, name) for name in names)


def fact_of(directory: Path, name: str) -> VersionFile:
    """Return what is recorded of one file."""
    path = directory / name
    return VersionFile(name=name, num_bytes=path.stat().st_size, sha256=file_sha256(path))


def files_digest(version: PolicyVersion) -> str:
    """One digest over all files of a version; empty where those beside the weights were not recorded."""
    if version.companions is None:
        return ""
    lines = [version.digest, *(f"{fact.name} {fact.sha256}" for fact in version.companions)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def differences(
    directory: Path, recorded: Sequence[VersionFile], *, ours: bool, absent: Collection[str] = ()
) -> list[str]:
    """Return what is not as recorded: one sentence for each changed, missing or added file; empty when all is well.

    A file that was added counts when a library would read it. Python files of a folder that is not ours are left to
    the record of code that a run trusts: other programs add them to the hub's cache.

    Args:
        directory: a model folder.
        recorded: its files beside the weights, as they were.
        ours: it holds a version that we published.
        absent: names that may be missing.
    """
    found = []
    for fact in recorded:
        path = directory / fact.name
        if not path.is_file():
            found += [] if fact.name in absent else [f"{fact.name} is missing"]
        elif path.stat().st_size != fact.num_bytes or file_sha256(path) != fact.sha256:
            found.append(f"{fact.name} changed")
    known = {fact.name for fact in recorded}
    added = [n for n in _names(directory, ours=ours) if is_read(n) and n not in known]
    return found + [f"{n} was added" for n in added if ours or not n.endswith(".py")]


def foreign_files(directory: Path, recorded: Sequence[VersionFile]) -> list[str]:
    """Files in a version's folder that nobody recorded and no library reads: they are ignored."""
    known = {fact.name for fact in recorded}
    return [n for n in _names(directory, ours=True) if n not in known and not is_read(n)]


def _names(directory: Path, *, ours: bool) -> Iterator[str]:
    """Regular files by their path in the folder, but weights, our manifest and temporary files.

    A folder that is not ours may have anything below it, and is only looked at where libraries look.
    """
    inside = directory.rglob("*") if ours else _shallow(directory)
    for path in sorted(inside):
        name = path.relative_to(directory).as_posix()
        is_weights = path.parent == directory and path.suffix == ".safetensors"
        if name != MANIFEST and not is_weights and not path.name.startswith(".") and path.is_file():
            yield name


def _shallow(directory: Path) -> Iterator[Path]:
    yield from directory.iterdir()
    yield from directory.glob(f"{CHAT_TEMPLATES}/*.jinja")
