"""Where libraries put what is temporary: in a folder that nobody else can enter, whoever was there first."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.cluster.private_folder import (
    MAX_CHARACTERS,
    close_to_others,
    places_of_ray,
    private_folder,
)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files as /tmp is one: everybody may write into it."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setenv("RAY_TMPDIR", name)
        yield Path(name)


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_below_a_folder_of_everybody_it_is_one_of_ours_alone(base: Path) -> None:
    made = private_folder()
    assert (made, mode(made)) == (base / f"pawl-{os.getuid()}", 0o700)
    assert private_folder() == made


def test_a_folder_that_nobody_else_enters_is_used_as_it_is(base: Path) -> None:
    base.chmod(0o700)
    assert private_folder() == base


def test_one_of_ours_that_others_may_enter_is_closed_to_them(base: Path) -> None:
    (base / f"pawl-{os.getuid()}").mkdir(mode=0o755)
    assert mode(private_folder()) == 0o700


@pytest.mark.parametrize("planted", ["link", "file"])
def test_what_somebody_else_planted_at_its_name_is_not_used(base: Path, planted: str) -> None:
    theirs = base / "theirs"
    theirs.mkdir()
    name = base / f"pawl-{os.getuid()}"
    if planted == "link":
        name.symlink_to(theirs)
    else:
        name.touch()
    made = private_folder()
    assert made not in (name, theirs)
    assert (mode(made), list(theirs.iterdir())) == (0o700, [])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_at_its_name_is_not_used(base: Path) -> None:
    theirs = base / f"pawl-{os.getuid()}"
    theirs.mkdir(mode=0o777)
    os.chown(theirs, 12345, 12345)
    assert private_folder() != theirs
    assert theirs.stat().st_uid == 12345


def test_where_the_path_would_be_too_long_for_a_socket_it_is_in_tmp(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(base / ("deep" * 10)))
    assert private_folder().parent == Path("/tmp")
    assert len(str(private_folder())) <= MAX_CHARACTERS


def test_the_doctor_looks_for_sessions_where_they_are_made(base: Path) -> None:
    assert private_folder() / "ray" in places_of_ray()


def test_only_folders_of_ours_are_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    close_to_others(tmp_path)
    close_to_others(tmp_path / "none")
    assert mode(tmp_path) == 0o700
