"""The files of its own folder that a Python module may load: a walk through its source, and theirs; nothing is run."""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_FILES = 2000
"""Files of one plug-in that are looked at."""
MAX_SOURCE_BYTES = 4 * 2**20
"""Longer sources are not walked through; they count as they are."""
MAX_DATA_BYTES = 64 * 2**20
"""Larger files that a source names do not count: they are data, and would be read whole at each look."""
_MAX_NAME = 200
_BY_NAME = frozenset({"import_module", "__import__"})
_BY_ANYTHING = frozenset(
    {"exec", "run_path", "run_module", "spec_from_file_location", "exec_module", "execfile"}
)
_SKIPPED = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
_NATIVE = (".so", ".pyd")
_WRITERS = frozenset({"FileHandler", "RotatingFileHandler", "write_text", "write_bytes", "touch"})
_MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]{1,3}")
"""Modes of `open` that write."""


@dataclass
class _Source:
    """Modules that one source says that it loads."""

    imports: list[tuple[int, str]] = field(default_factory=list)
    """Level (0 is absolute) and dotted name."""
    texts: list[str] = field(default_factory=list)
    computed: bool = False
    """It imports by a name, or runs a file, that only running it would tell."""


_walked: dict[tuple[str, int, int, int], _Source] = {}


def local_files(
    entry: Path, root: Path, *, also: Iterable[Path] = (), module: str = ""
) -> list[Path]:
    """Every file below `root`, or named by what is there, that `entry` loads now or later; `entry` first.

    Args:
        entry: the module's file.
        root: the folder from which it imports.
        also: further files that it is known to load.
        module: the dotted name below `root` of the module that is wanted, where `entry` is its top-level package.
    """
    found: dict[Path, None] = {}
    waiting = [entry, *_resolved(root, module), *also]
    took_all = False
    while waiting and len(found) < MAX_FILES:
        path = waiting.pop(0)
        if path in found:
            continue
        found[path] = None
        if path.suffix != ".py":
            continue
        source = _source(path)
        for level, name in source.imports:
            base = root if level == 0 else path.parents[min(level, len(path.parents)) - 1]
            waiting += _resolved(base, name)
            if level == 0 and path.parent != root and not (path.parent / "__init__.py").exists():
                waiting += _resolved(path.parent, name)
        waiting += (p for text in source.texts for p in _named(text, (path.parent, root)))
        if source.computed and not took_all:
            took_all = True
            waiting += _all_below(root)
    return list(found)


def is_code(path: Path) -> bool:
    """Tell a module from a data file by its name."""
    return path.suffix in (".py", *_NATIVE)


def _resolved(base: Path, dotted: str) -> Iterator[Path]:
    """Files that an import of `dotted` from the folder `base` loads: packages on the way, and the module."""
    here = base
    for part in [p for p in dotted.split(".") if p]:
        package = here / part / "__init__.py"
        if _exists(package):
            yield package
        elif _exists(here / f"{part}.py"):
            yield here / f"{part}.py"
            return
        elif not os.path.isdir(here / part):
            yield from _native(here, part)
            return
        here = here / part


def _native(folder: Path, name: str) -> Iterator[Path]:
    try:
        yield from (p for p in folder.glob(f"{name}.*") if p.suffix in _NATIVE)
    except (OSError, ValueError):
        return


def _named(text: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Files beside a module that a text in it names."""
    for folder in folders:
        path = folder / text
        try:
            if path.is_file() and path.stat().st_size <= MAX_DATA_BYTES:
                yield path.resolve()
        except (OSError, ValueError):
            continue


def _all_below(root: Path) -> Iterator[Path]:
    number = 0
    for top, folders, names in os.walk(root):
        folders[:] = sorted(
            f
            for f in folders
            if f not in _SKIPPED
            and not f.startswith(".")
            and not _exists(Path(top, f, "pyvenv.cfg"))
        )
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(top, name)
                number += 1
                if number >= MAX_FILES:
                    return


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _source(path: Path) -> _Source:
    try:
        facts = path.stat()
        key = (str(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if key not in _walked:
            _walked[key] = (
                _read(path.read_bytes()) if facts.st_size <= MAX_SOURCE_BYTES else _Source()
            )
        return _walked[key]
    except (OSError, ValueError):
        return _Source()


def _read(text: bytes) -> _Source:
    found = _Source()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a plug-in's own style is not ours to judge
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.imports += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [base, *(f"{base}.{a.name}" if base else a.name for a in node.names)]
            found.imports += [(node.level, name) for name in names]
        elif isinstance(node, ast.Call):
            _called(node, found)
        elif isinstance(node, ast.Constant) and _may_name_a_file(node.value):
            found.texts.append(str(node.value))
    written = _written(tree)
    found.texts = [text for text in found.texts if text not in written]
    return found


def _written(tree: ast.AST) -> set[str]:
    """Texts in calls that write to a file: a log or cache of the plug-in's own changes with every call."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _writes(n)]
    inside = [n for call in calls for n in ast.walk(call)]
    names = {n.id for n in inside if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id in names for t in targets):
            inside += ast.walk(node)
    return {n.value for n in inside if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _writes(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    texts = [n.value for n in given if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return name in _WRITERS or (name == "open" and any(_MODE.fullmatch(text) for text in texts))


def _may_name_a_file(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME and "\n" not in value


def _called(node: ast.Call, found: _Source) -> None:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in _BY_ANYTHING:
        found.computed = True
    elif name in _BY_NAME:
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            level = len(first.value) - len(first.value.lstrip("."))
            found.imports.append((level, first.value.lstrip(".")))
        else:
            found.computed = True
