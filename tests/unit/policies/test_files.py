"""Durable files: a crash anywhere, half a write or lost power leaves the old content or the new, never a part."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from policies.base.errors import StorageError
from policies.base.records import Prompt
from policies.storage import files
from policies.storage.artifacts import find_damage, marker_path, read_records, write_records
from policies.storage.faulty_files import CountingFiles, CrashingFiles, CrashMode, RefusingFiles


class Died(BaseException):
    """Stands for the end of the process: no handler of ours may catch it."""


def die() -> None:
    raise Died


def crash(folder: Path, at: int, mode: CrashMode) -> bool:
    """Replace `folder/state.json`, crashing at the given operation; says whether it died."""
    try:
        with files.using(CrashingFiles(at, mode, end=die)):
            files.write_json(folder / "state.json", {"new": list(range(50))})
    except Died:
        return True
    return False


@pytest.mark.parametrize("mode", ["before", "torn", "power"])
@pytest.mark.parametrize("existed", [False, True])
def test_a_file_is_the_old_one_or_the_new_one_wherever_the_write_is_cut_off(
    tmp_path: Path, mode: CrashMode, existed: bool
) -> None:
    outcomes = set()
    for at in range(1, 20):
        folder = tmp_path / str(at)
        folder.mkdir()
        if existed:
            files.write_json(folder / "state.json", {"old": 1})
        died = crash(folder, at, mode)
        path = folder / "state.json"
        outcomes.add(path.read_text() if path.exists() else None)
        if not died:
            break
    else:
        pytest.fail("the write never ended")
    (tmp_path / "clean").mkdir()
    files.write_json(tmp_path / "clean" / "state.json", {"new": list(range(50))})
    new = (tmp_path / "clean" / "state.json").read_text()
    assert outcomes == ({'{\n  "old": 1\n}\n', new} if existed else {None, new})


def put_d(path: Path) -> None:
    path.write_bytes(b"d")


def test_a_finished_write_survives_a_power_failure_at_the_next_operation(tmp_path: Path) -> None:
    layer = CrashingFiles(10**6, "power", end=die)
    with files.using(layer):
        files.write_json(tmp_path / "deep" / "a.json", 1)
        files.append_line(tmp_path / "log", b"one\n")
        files.append_line(tmp_path / "log", b"two\n")
        files.cut(tmp_path / "log", 4)
        files.append_line(tmp_path / "other", b"one\n")
        files.append_line(tmp_path / "other", b"two\n")
        files.write_once(tmp_path / "draft", put_d)
        files.move(tmp_path / "draft", tmp_path / "place" / "final")
        assert files.create_exclusively(tmp_path / "claim", b"mine")
        layer.crash_at = layer.count + 1
        with pytest.raises(Died):
            files.write_json(tmp_path / "deep" / "b.json", 2)
    assert (tmp_path / "deep" / "a.json").read_text() == "1\n"
    assert (tmp_path / "log").read_bytes() == b"one\n"
    assert (tmp_path / "other").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "place" / "final").read_bytes() == b"d"
    assert (tmp_path / "claim").read_bytes() == b"mine"


def test_records_cut_off_anywhere_do_not_exist_or_are_whole(tmp_path: Path) -> None:
    prompts = [Prompt(id=str(i), messages=()) for i in range(20)]
    modes: tuple[CrashMode, ...] = ("before", "torn", "power")
    for mode in modes:
        for at in range(1, 40):
            path = tmp_path / f"{mode}{at}" / "prompts.parquet"
            try:
                with files.using(CrashingFiles(at, mode, end=die)):
                    write_records(path, Prompt, prompts)
            except Died:
                assert find_damage(path) in (None, "was never finished")
            else:
                assert read_records(path, Prompt) == prompts
                break
        assert at > 8, "the crashes must have happened"


def test_of_several_makers_of_a_file_one_wins(tmp_path: Path) -> None:
    assert files.create_exclusively(tmp_path / "epoch", b"first")
    assert not files.create_exclusively(tmp_path / "epoch", b"second")
    assert (tmp_path / "epoch").read_bytes() == b"first"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "disk reports an error"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
    ],
)
def test_a_refusing_disk_is_named_with_the_path_and_what_to_do(
    tmp_path: Path, code: int, text: str
) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"old": 1})
    with (
        files.using(RefusingFiles(code, first=2)),
        pytest.raises(StorageError, match=rf"{text}.*state\.json.*Fix: .*pawl resume") as caught,
    ):
        files.write_json(path, {"new": 1})
    assert caught.value.exit_code == 75
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert os.listdir(tmp_path) == ["state.json"], "nothing half-written stays"


def test_a_really_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="disk is full"), files.storage(tmp_path):
        Path("/dev/full").write_bytes(b"x" * 10)


def test_other_errors_of_the_system_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), files.storage(tmp_path):
        tmp_path.read_bytes()


def test_temporaries_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.12.tmp", ".hidden", "a.json", "b.tmp"):
        (tmp_path / name).write_text("")
    assert [p.name for p in files.remove_temporaries(tmp_path)] == [".a.json.12.tmp"]
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.json", "b.tmp"]


def test_what_is_durable_takes_this_order_of_operations(tmp_path: Path) -> None:
    layer = CountingFiles()
    with files.using(layer):
        write_records(tmp_path / "a.parquet", Prompt, [])
    steps = [line.split(" ")[0] for line in layer.log]
    assert steps == ["fill", "sync", "rename", "sync_directory"] * 2, "data, then marker"
    assert layer.log[6].endswith(marker_path(tmp_path / "a.parquet").name)
