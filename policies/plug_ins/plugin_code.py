"""The code of a plug-in: its file with all that it loads from its own folder, or its installed package.

Found in two ways and joined: what its import opened (told by the process that imported it), and a walk through its
source for imports that happen later. Where the source imports by a computed name, every Python file of its folder
counts. Files beside it count when they were opened at the import, or when the source names them in a plain string and
writes to none of that name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

from pydantic import Field

from policies.base.component import OURS, installed_points
from policies.base.errors import ConfigurationError
from policies.base.records import Record
from policies.plug_ins.module_walk import MAX_FILES, is_code, local_files

_BY_PATH = re.compile(r"(?s)(?P<path>.+\.py)(:\w+)?")
_BY_NAME = re.compile(r"(?P<module>[A-Za-z_][\w.]*):[A-Za-z_]\w*")


class PlugInCode(Record):
    """The files that one plug-in is made of.

    Example: `PlugInCode(root="/home/me/graders", files={"mine.py": "9f..", "rules.py": "07.."})`, or
    `PlugInCode(package="my-graders 1.2", files={"RECORD": "5c.."})`.
    """

    root: str = ""
    """The folder that the names of `files` are relative to."""
    package: str = ""
    """Name and version, when it is installed and not as an editable one."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 by name; of a package, of its list of files."""

    @property
    def digest(self) -> str:
        """One sha256 of all of it; the folder that it lies in does not count."""
        text = json.dumps([self.package, self.files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def codes_of(
    config: Mapping[str, Any],
    *,
    required: Iterable[str] = (),
    imported: Iterable[str] = (),
    opened: Mapping[str, Iterable[Path]] | None = None,
) -> dict[str, PlugInCode]:
    """Return what every plug-in of a resolved config is made of, by what the config calls it.

    Args:
        config: as plain values.
        required: functions and files that components say they need.
        imported: further references that it led to.
        opened: files that the import of a reference opened.
    """
    named = dict.fromkeys([*_references(config), *required, *imported])
    given = opened or {}
    found = {name: code_of(name, given.get(name, ())) for name in named}
    return {name: code for name, code in sorted(found.items()) if code is not None}


def _references(value: Any, key: object = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _references(inner, name)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _references(inner, key)
    elif isinstance(value, str) and value:
        by_path = _BY_PATH.fullmatch(value)
        if (by_path is not None and _is_file(Path(by_path["path"]))) or (
            key == "type" and _names_a_module(value)
        ):
            yield value


def _names_a_module(value: str) -> bool:
    return bool(_BY_NAME.fullmatch(value)) or value in installed_points()


def code_of(reference: str, opened: Iterable[Path] = ()) -> PlugInCode | None:
    """Return what the plug-in of this name is made of; None when it is ours or cannot be found.

    Args:
        reference: `./file.py:name`, `package.module:name`, the name of an installed component, or a text file.
        opened: files that its import opened, or that it was made of when last looked at.
    """
    reference = installed_points().get(reference, reference)
    by_path, by_name = _BY_PATH.fullmatch(reference), _BY_NAME.fullmatch(reference)
    if by_path is not None:
        entry = Path(by_path["path"]).resolve()
        return _by_files(entry, entry.parent, opened) if _is_file(entry) else None
    if by_name is not None or re.fullmatch(r"[A-Za-z_][\w.]*", reference):
        return _of_module(by_name["module"] if by_name else reference, opened)
    path = Path(reference)
    if not _is_file(path):
        return None
    return PlugInCode(root=str(path.resolve().parent), files={path.name: sha256_of(path)})


def now(reference: str, recorded: PlugInCode) -> PlugInCode:
    """Return what the plug-in is made of at this moment, with the files of `recorded` looked at again.

    A data file that has come into being since is none of it: a plug-in may make one. A module would be imported.
    """
    known = [] if recorded.package else [Path(recorded.root, name) for name in recorded.files]
    found = code_of(reference, known) or PlugInCode()
    if recorded.package or found.package:
        return found
    kept = {n: s for n, s in found.files.items() if n in recorded.files or is_code(Path(n))}
    return found.model_copy(update={"files": kept})


def changes(before: PlugInCode, after: PlugInCode) -> list[str]:
    """Return what differs, in words. Example: `['rules.py was edited', 'more.py is new']`."""
    if before.package != after.package:
        return [f"{before.package or 'files'} became {after.package or 'files'}"]
    if before.package:
        same = before.files == after.files
        return [] if same else [f"{before.package} was installed anew with other files"]
    found = []
    for name in sorted(before.files.keys() | after.files.keys()):
        if name not in after.files:
            found.append(f"{name} is gone")
        elif name not in before.files:
            found.append(f"{name} is new")
        elif before.files[name] != after.files[name]:
            found.append(f"{name} was edited")
    return found


def _of_module(module: str, opened: Iterable[Path]) -> PlugInCode | None:
    top = module.partition(".")[0]
    if top in OURS:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    homes = (
        [spec.origin]
        if spec and spec.origin
        else list((spec and spec.submodule_search_locations) or ())
    )
    if not homes or not homes[0] or homes[0] in ("built-in", "frozen"):
        return None
    home = Path(homes[0]).resolve()
    folder = home.parent.parent if home.name == "__init__.py" else home.parent
    if _is_installed(home):
        return _by_package(top) or _by_files(home, folder, opened, module=module)
    return _by_files(home, folder, opened, module=module)


def _by_files(entry: Path, root: Path, opened: Iterable[Path], *, module: str = "") -> PlugInCode:
    files: dict[str, str] = {}
    loaded = [p for p in opened if _counts(p, root)]
    for path in local_files(entry, root, also=loaded, module=module):
        if _is_file(path):
            name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
            files[name] = sha256_of(path)
    return PlugInCode(root=str(root), files=files)


def _counts(path: Path, root: Path) -> bool:
    """Tell whether an opened file belongs to the plug-in: below its folder, or source that nobody installed."""
    if _is_installed(path) or path.is_relative_to(_our_root()):
        return path.is_relative_to(root) and not _is_installed(path) and not _is_ours(path)
    return path.is_relative_to(root) or path.suffix == ".py"


def _is_ours(path: Path) -> bool:
    return any(path.is_relative_to(_our_root() / name) for name in OURS)


@cache
def _our_root() -> Path:
    return Path(__file__).resolve().parents[2]


@cache
def _library_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in names})


def _is_installed(path: Path) -> bool:
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or any(path.is_relative_to(folder) for folder in _library_folders())
    )


def _by_package(top: str) -> PlugInCode | None:
    """Name, version and list of files of the distribution that installed `top`."""
    for name in sorted(set(_distributions().get(top, ()))):
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        listed = (found.read_text("RECORD") or "").splitlines()
        # Scripts and caches differ between machines with the same package.
        lines = sorted(
            line.rpartition(",")[0]
            for line in listed
            if not line.startswith("..") and ".dist-info/" not in line and ".pyc" not in line
        )
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return PlugInCode(package=f"{name} {found.version}", files={"RECORD": digest})
    return None


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return packages_distributions()


_hashes: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """sha256 of a file; read again only when its size or times changed."""
    facts = path.stat()
    key = (str(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if key not in _hashes:
        with path.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def check_number(codes: Mapping[str, PlugInCode]) -> None:
    """Refuse plug-ins of more files than anybody means.

    Raises:
        ConfigurationError: names the plug-in.
    """
    for name, code in codes.items():
        if len(code.files) >= MAX_FILES:
            raise ConfigurationError(
                f"a plug-in is made of too many files to look at (got {name!r}, {MAX_FILES} files or more). Set by: "
                "the config. Fix: put it into a folder of its own, or install it as a package"
            )
