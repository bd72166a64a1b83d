"""Checks what the import of a plug-in must leave as it is: the process, its folder and streams, functions of the
interpreter.

A worker runs several plug-ins in one process. One that replaces `json.dumps` there, or closes the standard output,
would break the others and us, so it is refused where it is first imported; what it changed is put back.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import posix
import sys
from types import ModuleType
from typing import Any

_WATCHED: tuple[ModuleType, ...] = (builtins, json, json.decoder, json.encoder, os, posix, sys)
_HOOKS = frozenset(
    {"excepthook", "displayhook", "unraisablehook", "breakpointhook", "stdin", "stdout", "stderr"}
)
"""Names that are there to be replaced."""

_exit = posix._exit
_getpid = posix.getpid
_getcwd, _chdir = posix.getcwd, posix.chdir
_fstat, _umask = posix.fstat, posix.umask
_num_forks = 0


def _count_fork() -> None:
    global _num_forks
    _num_forks += 1


os.register_at_fork(after_in_parent=_count_fork)


class Surroundings:
    """The state of things before an import."""

    def __init__(self) -> None:
        self._pid = _getpid()
        self._folder = _getcwd()
        self._forks = _num_forks
        self._mask = _read_mask()
        self._streams = {number: _identity(number) for number in (1, 2)}
        self._names = {
            module: {n: v for n, v in vars(module).items() if callable(v) and n not in _HOOKS}
            for module in _WATCHED
        }
        self._objects: dict[tuple[ModuleType, str], Any] = {
            (os, "environ"): os.environ,
            (sys, "modules"): sys.modules,
        }

    def end_if_copied(self) -> None:
        """End at once in a process that the import forked and let run on: it would answer a second time."""
        if _getpid() != self._pid:
            _exit(0)

    def changes(self) -> list[str]:
        """Return what is otherwise now, in words."""
        found: list[str] = []
        if _num_forks != self._forks:
            found.append("forks the process")
        found += [f"replaces {module.__name__}.{name}" for module, name, _ in self._replaced()]
        found += [
            f"closes or replaces file descriptor {number}"
            for number, before in self._streams.items()
            if _identity(number) != before
        ]
        if _folder() != self._folder:
            found.append("changes the current folder")
        if _read_mask() != self._mask:
            found.append("changes the umask")
        return found

    def restore(self) -> None:
        """Put back what can be put back."""
        for module, name, before in self._replaced():
            setattr(module, name, before)
        with contextlib.suppress(OSError):
            _chdir(self._folder)
        _umask(self._mask)

    def _replaced(self) -> list[tuple[ModuleType, str, Any]]:
        named = [
            (module, name, before)
            for module, names in self._names.items()
            for name, before in names.items()
            if vars(module).get(name) is not before
        ]
        objects = [
            (module, name, before)
            for (module, name), before in self._objects.items()
            if vars(module).get(name) is not before
        ]
        return named + objects


def _identity(number: int) -> tuple[int, int] | None:
    try:
        status = _fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _folder() -> str | None:
    try:
        return _getcwd()
    except OSError:
        return None


def _read_mask() -> int:
    mask = _umask(0o077)
    _umask(mask)
    return mask
