"""A SQLite file as MLflow's store: looked at without MLflow, and made by one process, whole or not at all.

MLflow makes its tables in place, in some sixty migrations that are not transactions: two processes that begin at once,
or one that is killed, leave a file that no MLflow opens any more. Here a new store is made in a file beside it, under
a lock, and moved to its place when it is done.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shlex
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from orchestrator.tracking.spool import TrackingAnswered
from policies.base.errors import TrackingError, explain

LOCK_SECONDS = 120.0
"""Longest wait for the process that makes the store."""
STILL_SECONDS = 30.0
"""A half-made store that nobody has written for so long is nobody's work any more."""
_REVISION = re.compile(r"^(down_revision|revision)\s*=\s*[\"']([0-9a-z_]+)[\"']", re.MULTILINE)

_CONTENT = (
    ("runs", ""),
    ("experiments", " WHERE experiment_id != 0"),
    ("registered_models", ""),
    ("trace_info", ""),
)
"""Where something of somebody's would be."""
State = Literal["missing", "whole", "half made", "older", "newer", "foreign"]


@dataclass(frozen=True)
class Store:
    """The state of a SQLite file for the MLflow that is installed here."""

    state: State
    revision: str = ""
    """Of its tables."""
    empty: bool = True
    """Holds no run, experiment, model or trace of anybody's."""
    why: str = ""
    """Why it cannot be read."""


def look(path: Path) -> Store:
    """Look at a store, reading only.

    Raises:
        sqlite3.OperationalError: it is locked, or cannot be read now.
    """
    if not path.exists() or path.stat().st_size == 0:
        return Store("missing")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {
                str(r[0])
                for r in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if not tables:
                return Store("missing")
            if not tables & {"alembic_version", "experiments"}:
                return Store("foreign", empty=False, why="it holds other tables than MLflow's")
            found = (
                database.execute("SELECT version_num FROM alembic_version").fetchall()
                if "alembic_version" in tables
                else []
            )
            revision = str(found[0][0]) if found else ""
            return Store(_state(revision), revision, _is_empty(database, tables))
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return Store("foreign", empty=False, why=str(error))


def _state(revision: str) -> State:
    known, head = revisions()  # no head: MLflow itself will say
    if not revision:
        return "half made"
    if not head or revision == head:
        return "whole"
    return "older" if revision in known else "newer"


def _is_empty(database: sqlite3.Connection, tables: set[str]) -> bool:
    for table, where in _CONTENT:
        if table in tables:
            found = database.execute(f"SELECT 1 FROM {table}{where} LIMIT 1")  # nosec B608 # fixed names
            if found.fetchone() is not None:
                return False
    return True


@cache
def revisions() -> tuple[frozenset[str], str]:
    """The revisions of tables that the installed MLflow knows, and the one that it works with; nothing is imported."""
    spec = importlib.util.find_spec("mlflow")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    known: set[str] = set()
    before: set[str] = set()
    for place in places:
        for path in Path(place, "store", "db_migrations", "versions").glob("*.py"):
            for name, value in _REVISION.findall(path.read_text(encoding="utf-8")):
                (known if name == "revision" else before).add(value)
    heads = known - before
    return frozenset(known), heads.pop() if len(heads) == 1 else ""


def deleted_experiment(path: Path, name: str) -> str | None:
    """The id of the experiment `name` where it was deleted and not purged; None for any other."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(
            "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'",
            (name,),
        ).fetchone()
    return None if found is None else str(found[0])


def store_problem(path: Path, found: Store) -> str | None:
    """Tell why nothing can be sent to this store, and what to do; None where it can, or where it will be mended."""
    uri = f"sqlite:///{path.absolute()}"
    if found.state in ("missing", "whole"):
        return None
    if found.empty and found.state in ("half made", "older"):  # made anew: nothing is lost
        return None
    if found.state == "foreign":
        return explain(
            f"the file is no store of MLflow ({found.why})",
            value=str(path),
            where="tracking.uri",
            fix=f"set tracking.uri={uri}.new.db, or move the file away",
        )
    if found.state == "newer":
        return explain(
            f"the MLflow store was made by a newer MLflow (tables of revision {found.revision}) than is installed here",
            value=str(path),
            where="tracking.uri",
            fix=f"set tracking.uri={uri}.new.db, or install that MLflow (pip install -U mlflow)",
        )
    upgrade = shlex.join([sys.executable, "-m", "mlflow", "db", "upgrade", uri])
    copy = shlex.join(["cp", str(path.absolute()), f"{path.absolute()}.before-upgrade"])
    revision = found.revision or "none"
    return explain(
        f"the MLflow store has the tables of an older MLflow (revision {revision}), or its making was cut off",
        value=str(path),
        where="tracking.uri",
        fix=f"keep a copy and bring it up to date: `{copy} && {upgrade}`; or set tracking.uri={uri}.new.db",
    )


def ensure_store(path: Path, make: Callable[[Path], None], warn: Callable[[str], None]) -> None:
    """Make the store where it is missing, and anew where its making was cut off before anything was in it.

    Args:
        path: the SQLite file.
        make: fills the file that it is given with all tables, and closes it.
        warn: told of a half-made store that was set aside.

    Raises:
        TrackingAnswered: the file is no store that the MLflow of this machine can write to.
        TrackingError: another process is making it.
    """
    try:
        if _is_usable(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_maker(path):
            if not _is_usable(path):
                _make(path, make, warn)
    except sqlite3.OperationalError as error:
        raise TrackingError(f"the MLflow store {path} cannot be read now: {error}") from error


def _is_usable(path: Path) -> bool:
    found = look(path)
    if problem := store_problem(path, found):
        raise TrackingAnswered(problem)
    return found.state == "whole"


def _make(path: Path, make: Callable[[Path], None], warn: Callable[[str], None]) -> None:
    if path.exists() and path.stat().st_size:
        if time.time() - path.stat().st_mtime < STILL_SECONDS:
            raise TrackingError(f"another process is making the MLflow store {path}")
        aside = _free(path)
        os.rename(path, aside)
        warn(f"the making of the MLflow store {path} had been cut off: it is made anew ({aside})")
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        make(draft)
        os.replace(draft, path)
    finally:
        for left in path.parent.glob(f"{draft.name}*"):
            left.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """A name beside `path` that nothing has."""
    number = 1
    while (aside := path.with_name(f"{path.name}.half-made-{number}")).exists():
        number += 1
    return aside


@contextmanager
def _only_maker(path: Path) -> Iterator[None]:
    """Hold the lock file beside the store; the system gives it back when its holder dies."""
    descriptor = os.open(
        path.with_name(path.name + ".lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackingError(
                        f"another process is making the MLflow store {path}, for {LOCK_SECONDS:g} s already"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
