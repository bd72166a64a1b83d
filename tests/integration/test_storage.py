"""A run that is copied to a bucket goes on from the bucket alone; a reader of it never sees half of anything."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.bucket_location import Location
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import StorageSettings
from orchestrator.driver.launch import run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.phases import Phase
from orchestrator.storage.bucket import Bucket
from orchestrator.storage.fetch import fetch_run
from orchestrator.storage.mirror import Mirror
from policies.base.errors import (
    ConfigurationError,
    CorruptStateError,
    LeaseError,
    RunNotFoundError,
    StorageError,
)
from policies.storage import files
from policies.storage.fake_model import write_fake_model
from policies.storage.faulty_files import FailingDisk
from tests.support.run_folders import start_run
from tests.support.s3_server import CREDENTIALS, s3_server

DRIVER = Path(__file__).with_name("driver.py")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3-compatible server (moto's) with the bucket `models`."""
    with s3_server() as address:
        yield address


def tree(folder: Path, **storage: Any) -> dict[str, Any]:
    write_fake_model(folder / "model", skill=0.3)
    arithmetic = {"type": "arithmetic", "low": 2, "high": 6, "held_out": 5}
    return {
        "rounds": 2,
        "policy": {"model": str(folder / "model")},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": 6,
        },
        "rollout": {"engine": {"type": "fake"}, "samples_per_prompt": 3, "prompts_per_shard": 3},
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong"},
        "training": {"engine": {"type": "fake"}},
        "cluster": {"backend": "inline"},
        "storage": storage,
        "tracking": {"enabled": False},
    }


def bucket(server: str, run: str) -> Bucket:
    return Bucket(Location("models", f"pawl/{run}"), server, 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a run that nothing happened to and that is copied nowhere."""
    folder = tmp_path_factory.mktemp("whole")
    run = RunFolder(folder / "run")
    run_experiment(RunConfig.model_validate(tree(folder)), run, source="")
    return run.journal.read_bytes()


def killed_run(folder: Path, server: str, name: str, moment: str) -> None:
    path = folder / "config.json"
    # One phase at most may wait to be copied: the run is too quick for a longer backlog.
    url = {"url": "s3://models/pawl", "endpoint_url": server, "max_backlog": 1}
    path.write_text(json.dumps(tree(folder, **url)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder / name), str(path), moment],
        env=os.environ | CREDENTIALS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -9, done.stderr[-3000:]


def test_a_killed_run_goes_on_from_the_bucket_alone_with_the_same_journal(
    tmp_path: Path, server: str, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_run(tmp_path, server, "moved", "start:2:evaluate")
    for path in sorted((tmp_path / "moved").rglob("*"), reverse=True):  # that machine is gone
        path.rmdir() if path.is_dir() else path.unlink()
    said: list[str] = []
    address = "s3://models/pawl/moved"
    looked_at = fetch_run(address, tmp_path / "look", endpoint_url=server, say=said.append)
    before = looked_at.journal.read_bytes()
    assert whole.startswith(before)
    assert before.count(b"\n") > 8, "round 1 at least must have reached the bucket"
    assert "fetched" in said[0]
    proved(looked_at, address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    runs = tmp_path / "other" / "runs"
    done = CliRunner().invoke(app, ["resume", address, "--runs-dir", str(runs)])
    assert done.exit_code == 0, done.output
    folder = RunFolder(runs / "moved")
    assert folder.journal.read_bytes() == whole
    proved(folder, address)
    assert bucket(server, "moved").read("journal.jsonl") == whole
    epochs = bucket(server, "moved").names("epochs")
    assert sorted(epochs) == ["epochs/000001.json", "epochs/000002.json"]


def proved(folder: RunFolder, address: str) -> None:
    """`pawl verify` calls the run whole, and says what it has not looked at and where that is."""
    report = audit(folder, deep=True)
    assert [problem for check in report for problem in check.problems] == []
    assert any("were not fetched" in n and address in n for n in report["complete"].notes)


class Recorder(Bucket):
    """Writes down the order of what is put."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.order: list[str] = []

    def put(self, name: str, source: Path | bytes) -> str:
        digest = super().put(name, source)
        self.order.append(name)
        return digest


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, server: str) -> tuple[RunFolder, list[str]]:
    """A finished local run, and the names of its objects in the order in which they were put."""
    folder = tmp_path_factory.mktemp("mirrored")
    run = RunFolder(folder / "whole")
    run_experiment(RunConfig.model_validate(tree(folder)), run, source="")
    settings = StorageSettings(url="s3://models/pawl", endpoint_url=server)
    patch = pytest.MonkeyPatch()
    recorders: list[Recorder] = []

    def recording(*args: Any) -> Recorder:
        recorders.append(Recorder(*args))
        return recorders[-1]

    patch.setattr("orchestrator.storage.mirror.Bucket", recording)
    Mirror(settings, run, epoch=1).close(failed=False)
    patch.undo()
    return run, recorders[0].order


def test_files_go_before_what_vouches_for_them_and_the_journal_last(
    mirrored: tuple[RunFolder, list[str]],
) -> None:
    _, order = mirrored
    place = {name: i for i, name in reversed(list(enumerate(order)))}
    vouched = [n for n in order if n.endswith(".parquet")]
    assert vouched
    assert all(place[n] < place[f"{n}.json"] for n in vouched)
    weights = [
        n for n in order if n.startswith("policies/0001/") and not n.endswith("manifest.json")
    ]
    assert weights
    assert all(place[n] < place["policies/0001/manifest.json"] for n in weights)
    assert order[-1] == "journal.jsonl"
    assert order[-2].startswith("mirror/")


def test_what_is_in_the_bucket_is_what_is_in_the_folder(
    mirrored: tuple[RunFolder, list[str]], server: str
) -> None:
    run, _ = mirrored
    there = bucket(server, "whole")
    names = set(there.names())
    for path in (run.identity, run.journal, *run.path.glob("rounds/*/trajectories/*")):
        name = path.relative_to(run.path).as_posix()
        assert name in names
        assert there.read(name) == path.read_bytes()
    assert not [n for n in names if "attempts" in n or "candidate" in n or n == "driver.json"]


def test_a_second_driver_sends_nothing_again_and_stops_the_first(
    mirrored: tuple[RunFolder, list[str]], server: str
) -> None:
    run, _ = mirrored
    settings = StorageSettings(url="s3://models/pawl", endpoint_url=server)
    first = Mirror(settings, run, epoch=2)
    second = Mirror(settings, run, epoch=3)
    second.close(failed=False)
    sent = json.loads(bucket(server, "whole").read("mirror/000001.json"))["files"]
    assert not [n for n in sent if n.endswith((".parquet", ".safetensors", "manifest.json"))]

    def go_on() -> None:
        first.phase_finished(Phase.COLLECT)
        first.close(failed=False)

    with pytest.raises(LeaseError, match="epoch 2"):
        go_on()


def test_a_changed_object_is_named_and_not_used(
    tmp_path: Path, mirrored: tuple[RunFolder, list[str]], server: str
) -> None:
    there = bucket(server, "whole")
    name = "policies/0001/" + next(
        Path(n).name for n in there.names("policies/0001") if not n.endswith(".json")
    )
    good = there.read(name)
    there.put(name, bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CorruptStateError, match=name):
        fetch_run("s3://models/pawl/whole", tmp_path, endpoint_url=server)
    assert not (tmp_path / "whole" / "run.json").exists(), "half a fetch is no run"
    there.put(name, good)
    folder = fetch_run("s3://models/pawl/whole", tmp_path, endpoint_url=server)
    assert hashlib.sha256((folder.path / name).read_bytes()).digest()
    with pytest.raises(ConfigurationError, match="already"):
        fetch_run("s3://models/pawl/whole", tmp_path, endpoint_url=server)


def test_a_file_that_cannot_be_read_leaves_the_object_that_is_there(server: str) -> None:
    there = bucket(server, "unreadable")
    there.put("a", b"as it was")
    with pytest.raises(StorageError, match=r"a cannot be read to be copied.*Fix: check the disk"):
        there.put("a", Path("/proc/self/mem"))  # gives EIO, as a disk does
    assert there.read("a") == b"as it was"


def test_a_file_that_gives_out_in_the_middle_leaves_no_part_of_itself(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = bucket(server, "unreadable")
    (tmp_path / "weights").write_bytes(b"x" * 100)
    monkeypatch.setattr("orchestrator.storage.bucket.BLOCK_BYTES", 60)
    whole, reads = there._next_block, []

    def second_fails(content: BinaryIO, name: str) -> bytes:
        reads.append(name)
        with Path("/proc/self/mem").open("rb") as broken:
            return whole(content if len(reads) == 1 else broken, name)

    monkeypatch.setattr(there, "_next_block", second_fails)
    with pytest.raises(StorageError, match="cannot be read"):
        there.put("weights", tmp_path / "weights")
    assert "weights" not in there.names()


def test_no_room_for_a_download_is_told_of_this_machine_and_not_of_the_server(
    tmp_path: Path, server: str
) -> None:
    there = bucket(server, "unreadable")
    there.put("b", b"content")
    target = tmp_path / "b"
    with files.using(FailingDisk(1, "once")), pytest.raises(StorageError, match="the disk is full"):
        there.download("b", target)
    assert there.download("b", target) == hashlib.sha256(b"content").hexdigest()
    assert target.read_bytes() == b"content"


def test_a_run_that_is_not_there_is_said_to_be_missing(tmp_path: Path, server: str) -> None:
    with pytest.raises(RunNotFoundError, match="nothing-here"):
        fetch_run("s3://models/pawl/nothing-here", tmp_path, endpoint_url=server)


def test_a_bucket_that_does_not_answer_is_a_temporary_failure_that_names_the_settings(
    tmp_path: Path,
) -> None:
    settings = StorageSettings(
        url="s3://models/pawl", endpoint_url="http://127.0.0.1:1", timeout_seconds=2
    )
    run = start_run(tmp_path / "run")
    with pytest.raises(StorageError, match=r"storage\.endpoint_url") as failed:
        Mirror(settings, run, epoch=1)
    assert failed.value.exit_code == 75


@pytest.mark.parametrize(
    ("text", "bucket_name", "prefix"),
    [("s3://a/b/c", "a", "b/c"), ("s3:/a/b", "a", "b"), ("s3://a", "a", "")],
)
def test_addresses_are_read(text: str, bucket_name: str, prefix: str) -> None:
    assert Location.parse(text) == Location(bucket_name, prefix)


@pytest.mark.parametrize("text", ["http://a/b", "s3://", "s3://key:secret@a/b", "s3://a/../b"])
def test_other_addresses_are_refused_without_repeating_a_secret(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"storage\.url") as refused:
        Location.parse(text)
    assert "secret" not in str(refused.value)
