"""A lock between commits (shared) and claims (alone): nobody takes a run over in the middle of a commit.

It is the kernel's (`flock`), so it ends with its process. Nothing that decides rests on it: where a file system has
no locks or takes them lightly, the journal's heads still say which lines count. It keeps a driver that is replaced
between its check and its change from touching the files of the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from policies.base.errors import LeaseError
from policies.storage import files

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 60.0
"""The longest that one commit waits for a claim, or a claim for a commit."""
_NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EPERM}
)


@contextmanager
def locked(path: Path, *, alone: bool, patience: float = PATIENCE_SECONDS) -> Iterator[bool]:
    """Hold the lock file `path` inside; gives False where the file system has no locks.

    Raises:
        LeaseError: others held it for longer than `patience` seconds.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with files.storage(path):
        descriptor = os.open(path, flags, 0o600)
    try:
        yield _take(descriptor, path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, patience)
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that was forked meanwhile
        os.close(descriptor)


def _take(descriptor: int, path: Path, kind: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LeaseError(
                    f"a process that lives holds {path} for more than {patience:g} s: it was stopped in the middle of "
                    "a commit or a claim. Fix: let it go on (`kill -CONT`) or end it, then `pawl resume`; "
                    f"`fuser -v {path}` names it"
                ) from None
            wait(POLL_SECONDS)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise


def wait(seconds: float) -> None:
    """Let others go on."""
    time.sleep(seconds)
