"""Changing files that only the holder of a run may change: asked for before, and kept from being replaced meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Holder(Protocol):
    """A guard that can also keep others from taking the run over for the length of a commit."""

    def __call__(self) -> None:
        """Raise when this process may not commit."""

    def holding(self) -> AbstractContextManager[bool]:
        """Ask, and let nobody take the run over inside; gives whether the file system could promise that."""


@contextmanager
def committing(guard: Callable[[], None] | None) -> Iterator[None]:
    """Make changes to shared names in here: check and change are one step for whoever wants to take the run over.

    Raises:
        LeaseError: by the guard: another process has the run.
    """
    if isinstance(guard, Holder):
        with guard.holding():
            yield
        return
    if guard is not None:
        guard()
    yield
