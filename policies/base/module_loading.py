"""Importing a Python file by its path, with the modules that lie beside it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from policies.base.errors import ConfigurationError

USER_MODULE = "pawl_user_"
"""Prefix of the names that modules loaded from a path get."""


def import_from_folder_of(reference: str) -> None:
    """Let modules beside the file of `./file.py:name` be imported for as long as this process lives, first of all.

    For a process of one component: it may import what lies beside it at any time, as in a script.
    """
    path, _, _ = reference.rpartition(":")
    if path.endswith(".py"):
        folder = str(Path(path).resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)


@contextmanager
def _folder_importable(folder: str) -> Iterator[None]:
    """Let modules of `folder` be imported meanwhile, and forget them afterwards.

    For another component's file may lie beside modules of the same names.
    """
    if folder in sys.path:
        yield
        return
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the file itself may have changed the path
            sys.path.remove(folder)
        new = set(sys.modules) - before
        beside = {name for name in new if _lies_in(folder, name)}
        for name in new:
            if name.partition(".")[0] in beside:
                del sys.modules[name]


def _lies_in(folder: str, name: str) -> bool:
    """Tell whether the top-level module `name` is a file or a package directly in `folder`."""
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    homes = [file] if file else list(getattr(module, "__path__", ()))
    if "." in name or name.startswith(USER_MODULE) or not homes:
        return False
    home = Path(homes[0])
    return str(home.parent.parent if home.name == "__init__.py" else home.parent) == folder


def load_module(reference: str) -> ModuleType:
    """Import `package.module`, or a Python file given by path, under a name derived from the path.

    A file may import the modules that lie beside it.
    """
    if not reference.endswith(".py"):
        return importlib.import_module(reference)
    path = Path(reference).resolve()
    if not path.is_file():
        raise ConfigurationError(f"no such file: {path}. Fix: correct the path")
    name = f"{USER_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _folder_importable(str(path.parent)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
