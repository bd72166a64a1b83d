"""The token of a Ray cluster of our own: made by the process that starts it, and gone with it.

A process that is killed leaves its folder behind (`<tmp>/pawl-ray-*`). Each folder says who made it, so the next
session removes those whose process is dead; what another user, machine or container made, or a live process, stays.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from policies.base.process_identity import process_start
from policies.base.records import Record

logger = logging.getLogger(__name__)

PREFIX = "pawl-ray-"
OWNER = "owner.json"


class Owner(Record):
    """The maker of a token. Example: `Owner(host="node7", namespace=4026531836, pid=812, pid_started=90113)`."""

    host: str
    namespace: int
    """Of process numbers: containers that share a folder each have their own numbers."""
    pid: int
    pid_started: int


@functools.cache
def ensure_token() -> None:
    """Turn token authentication on, with a token of our own that only we can read, unless the user has set it up.

    One token per process: Ray reads it once and keeps it, so a second cluster in the process must use the first's.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    owner = _this_process()
    if owner is not None:  # before the token, so that none lies there without its maker's name
        _write(folder / OWNER, owner.model_dump_json())
    _write(folder / "token", secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")


def remove_orphaned_tokens(place: Path | None = None) -> list[Path]:
    """Remove the folders of processes of this user, on this machine, that are dead; returns what was removed.

    Args:
        place: where to look; the folder for temporary files by default.
    """
    me = _this_process()
    if me is None:  # no /proc: nobody can be told dead
        return []
    removed = []
    for folder in sorted((place or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        owner = _owner(folder)
        if owner is None or (owner.host, owner.namespace) != (me.host, me.namespace):
            continue
        if process_start(owner.pid) != owner.pid_started:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    if removed:
        logger.info("removed the Ray tokens of %d processes that were killed", len(removed))
    return removed


def _this_process() -> Owner | None:
    started = process_start(os.getpid())
    if started is None:
        return None
    with contextlib.suppress(OSError):  # a /proc without namespaces tells nothing
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        return Owner(
            host=socket.gethostname(), namespace=namespace, pid=os.getpid(), pid_started=started
        )
    return None


def _owner(folder: Path) -> Owner | None:
    """Return who made a folder of ours; None for one that is not ours, or does not say."""
    try:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            return None
        return Owner.model_validate(json.loads((folder / OWNER).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
