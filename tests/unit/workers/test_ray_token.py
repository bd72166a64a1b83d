"""Tokens of our own clusters: private, gone with their process, and swept after one that was killed, never before."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from policies.base.errors import ConfigurationError
from tests.support.started_process import ended_after
from workers.cluster.ray.session import RaySession
from workers.cluster.ray.token import OWNER, PREFIX, remove_orphaned_tokens

MAKER = (
    "import os, signal, sys; from workers.cluster.ray.token import ensure_token; ensure_token();"
    "print(os.environ['RAY_AUTH_TOKEN_PATH'], flush=True); sys.stdin.readline();"
    "os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == 'killed' else None"
)


def start(place: Path, ending: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that made a token in `place` and waits for a line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, ending],
        env=environment | {"TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_token_of_a_killed_process_is_removed_by_the_next_and_that_of_a_live_one_never(
    tmp_path: Path,
) -> None:
    process, token = start(tmp_path, "killed")
    with ended_after(process):
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
        assert remove_orphaned_tokens(tmp_path) == [], "its process lives"
        assert token.exists()
        process.communicate("\n", timeout=30)
        assert token.exists(), "a killed process tidies up nothing"
        assert remove_orphaned_tokens(tmp_path) == [token.parent]
        assert not token.parent.exists()


def test_a_process_that_ends_by_itself_takes_its_token_along(tmp_path: Path) -> None:
    process, token = start(tmp_path, "ends")
    process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert not token.parent.exists()


def test_every_session_sweeps_before_it_starts_or_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, token = start(tmp_path, "killed")
    process.communicate("\n", timeout=30)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_gcs_rpc_server_reconnect_timeout_s"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConfigurationError, match="Ray Client"):  # as far as it gets without Ray
        RaySession(address="ray://head:10001", num_cpus=None)
    assert not token.parent.exists()


@pytest.mark.parametrize(
    ("change", "removed"),
    [
        ({}, True),
        ({"pid": os.getppid(), "pid_started": 1}, True),  # a later process has the number
        ({"host": "another-machine"}, False),
        ({"namespace": 1}, False),  # a container that shares the folder
        (None, False),  # not said who made it
    ],
    ids=["dead", "number-taken-again", "other-machine", "other-container", "unknown"],
)
def test_only_what_is_surely_dead_and_ours_is_removed(
    tmp_path: Path, change: dict[str, object] | None, removed: bool
) -> None:
    process, token = start(tmp_path, "killed")
    process.communicate("\n", timeout=30)
    owner = json.loads((token.parent / OWNER).read_text())
    (token.parent / OWNER).write_text("" if change is None else json.dumps(owner | change))
    assert bool(remove_orphaned_tokens(tmp_path)) is removed
    assert token.exists() is not removed


def test_a_link_or_a_folder_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, token = start(tmp_path, "killed")
    process.communicate("\n", timeout=30)
    aside = token.parent.rename(tmp_path / "aside")
    (tmp_path / f"{PREFIX}link").symlink_to(aside)
    assert remove_orphaned_tokens(tmp_path) == []
    (tmp_path / f"{PREFIX}link").unlink()
    aside.rename(token.parent)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert remove_orphaned_tokens(tmp_path) == []
    monkeypatch.undo()
    assert remove_orphaned_tokens(tmp_path) == [token.parent]
