"""What a refusal of the tracking store tells to type is typed here as it stands, and the store is then taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from orchestrator.tracking.sqlite_store import look
from tests.unit.orchestrator.test_plan_tracking import verdict


def write_old_store(uri: str) -> None:
    """The tables of the revision before the newest, made by MLflow's own migrations, and a deleted experiment."""
    import sqlalchemy
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(uri)
    Base.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    deleted = (
        "INSERT INTO experiments (experiment_id, name, lifecycle_stage) "
        "VALUES (7, 'demo/1', 'deleted')"
    )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "heads-1")
        connection.execute(sqlalchemy.text(deleted))
    engine.dispose()


def paste(found: list[tuple[str, str]]) -> None:
    """Run the command between backticks of the one problem, as a user's shell does with the environment active."""
    ((kind, text),) = found
    assert kind == "problem"
    (command,) = re.findall(r"`([^`]+)`", text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_older_store_and_a_deleted_experiment_are_put_right_by_what_the_refusals_tell_to_type(
    tmp_path: Path,
) -> None:
    store = tmp_path / "a store" / "m.db"  # a space: what is pasted must be quoted
    store.parent.mkdir()
    uri = f"sqlite:///{store}"
    write_old_store(uri)
    assert look(store).state == "older"

    before = store.read_bytes()
    paste(verdict(tmp_path, uri))
    assert Path(f"{store}.before-upgrade").read_bytes() == before
    assert look(store).state == "whole"
    ((kind, text),) = verdict(tmp_path, uri)
    assert "experiments restore" in text
    paste([(kind, text)])
    assert verdict(tmp_path, uri) == []
