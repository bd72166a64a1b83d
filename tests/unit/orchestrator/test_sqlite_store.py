"""MLflow's SQLite store is made by one process, whole or not at all, and what is wrong with one is told."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.tracking import sqlite_store
from orchestrator.tracking.refusals import deleted, told
from orchestrator.tracking.spool import TrackingAnswered
from orchestrator.tracking.sqlite_store import (
    Store,
    deleted_experiment,
    ensure_store,
    look,
    revisions,
    store_problem,
)
from policies.base.errors import TrackingError

HEAD = revisions()[1]


def write_store(path: Path, *, revision: str | None = HEAD, runs: int = 0) -> None:
    """The tables of a store that are looked at."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (run_uuid TEXT)")
        database.execute(
            "CREATE TABLE experiments (experiment_id INTEGER, name TEXT, lifecycle_stage TEXT)"
        )
        database.execute("INSERT INTO experiments VALUES (0, 'Default', 'active')")
        database.executemany("INSERT INTO runs VALUES (?)", [(str(i),) for i in range(runs)])
        if revision is not None:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))


def still(path: Path) -> None:
    """Make the file look as if nobody had written it for a while."""
    os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_the_revision_that_the_installed_mlflow_works_with_is_found_without_importing_it() -> None:
    code = (
        "import sys; from orchestrator.tracking.sqlite_store import revisions; r = revisions(); "
        "assert r[1] in r[0] and len(r[0]) > 20; sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_of_many_that_begin_at_once_one_makes_the_store_and_all_find_it_whole(
    tmp_path: Path,
) -> None:
    for attempt in range(5):
        path, makers = tmp_path / f"{attempt}.db", list[int]()

        def make(draft: Path, makers: list[int] = makers, path: Path = path) -> None:
            assert not path.exists()
            makers.append(threading.get_ident())
            time.sleep(0.05)
            write_store(draft)

        def begin(path: Path = path, make: object = make) -> str:
            ensure_store(path, make, pytest.fail)  # type: ignore[arg-type]
            return look(path).state

        with ThreadPoolExecutor(8) as pool:
            assert [f.result() for f in [pool.submit(begin) for _ in range(8)]] == ["whole"] * 8
        assert len(makers) == 1
    assert not list(tmp_path.glob(".*"))  # no draft is left


def test_a_maker_that_dies_leaves_no_store_and_the_next_one_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"

    def dies(draft: Path) -> None:
        write_store(draft, revision=None)
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        ensure_store(path, dies, pytest.fail)
    assert not path.exists()
    ensure_store(path, write_store, pytest.fail)
    assert look(path).state == "whole"


@pytest.mark.parametrize("revision", [None, "451aebb31d03"])
def test_a_half_made_store_with_nothing_in_it_is_set_aside_and_made_anew(
    tmp_path: Path, revision: str | None
) -> None:
    path, warnings = tmp_path / "m.db", list[str]()
    write_store(path, revision=revision)
    with pytest.raises(TrackingError, match="is making"):  # somebody may be at it
        ensure_store(path, write_store, warnings.append)
    still(path)
    ensure_store(path, write_store, warnings.append)
    assert look(path).state == "whole"
    assert [p.name for p in tmp_path.glob("*half-made*")] == ["m.db.half-made-1"]
    assert "made anew" in warnings[0]


def test_an_older_store_with_runs_in_it_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    write_store(path, revision="451aebb31d03", runs=1)
    still(path)
    before = path.read_bytes()
    with pytest.raises(TrackingAnswered, match="mlflow db upgrade"):
        ensure_store(path, write_store, pytest.fail)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("state", "remedy"),
    [("older", "mlflow db upgrade sqlite:///"), ("newer", "pip install -U mlflow"),
     ("foreign", "move the file away"), ("half made", "mlflow db upgrade sqlite:///")],
)  # fmt: skip
def test_a_store_that_cannot_be_written_is_told_in_four_parts(
    tmp_path: Path, state: sqlite_store.State, remedy: str
) -> None:
    problem = store_problem(tmp_path / "m.db", Store(state, "abc", empty=False))
    assert problem is not None
    assert remedy in problem
    assert "Set by: tracking.uri. Fix: " in problem


def test_every_kind_of_file_is_known_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("this is no database" * 100)
    write_store(tmp_path / "newer.db", revision="ffffffffffff", runs=1)
    with closing(sqlite3.connect(tmp_path / "other.db")) as database, database:
        database.execute("CREATE TABLE books (title TEXT)")
    states = {p.stem: look(p).state for p in tmp_path.glob("*.db")}
    assert states == {"empty": "missing", "text": "foreign", "newer": "newer", "other": "foreign"}
    assert look(tmp_path / "none.db").state == "missing"


def test_a_deleted_experiment_is_found_and_the_way_back_named(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    write_store(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO experiments VALUES (3, 'demo', 'deleted')")
    assert deleted_experiment(path, "demo") == "3"
    assert deleted_experiment(path, "Default") is None
    assert "experiments restore -x 3" in str(deleted(f"sqlite:///{path}", "demo", "3"))


@pytest.mark.parametrize(
    ("text", "says", "answered"),
    [
        ("failed with error code 401 != 200", "other credentials (401)", True),
        ("failed with error code 403 != 200", "does not let this user in (403)", True),
        ("failed with error code 404 != 200", "no MLflow at this address (404)", True),
        ("failed with error code 413 != 200", "too large", True),
        ("failed with error code 503 != 200", "answers with error 503", False),
        ("failed with exception SSLError(SSLCertVerificationError", "certificate", True),
        ("Max retries: NameResolutionError: Failed to resolve 'x'", "host name is not known", False),
        ("out-of-date database schema (found version 400f98739977, but", "another MLflow", True),
    ],
)  # fmt: skip
def test_a_refusal_is_told_as_what_it_is(text: str, says: str, answered: bool) -> None:
    found = told(Exception(text), "https://ann:s3cr3t@host/x", experiment="demo")
    assert says in str(found)
    assert isinstance(found, TrackingAnswered) is answered
    assert "s3cr3t" not in str(found)


def test_silence_is_no_refusal() -> None:
    assert told(Exception("Connection refused"), "http://host") is None
