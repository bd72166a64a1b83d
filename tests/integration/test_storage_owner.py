"""A place in a bucket belongs to one run: no other writes there, whatever its name and whenever it starts."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.config.bucket_location import Location
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import StorageSettings
from orchestrator.driver.launch import run_experiment
from orchestrator.plan.preflight import make_plan
from orchestrator.runs.folder import RunFolder
from orchestrator.storage.bucket import Bucket
from orchestrator.storage.fetch import fetch_run
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.owner import claim_place, owner_of, read_claims, run_id_of
from policies.base.errors import ConfigurationError, CorruptStateError, StorageError
from tests.support.fake_runs import fake_tree
from tests.support.s3_server import s3_server

URL = "s3://models/own"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3-compatible server (moto's) with the bucket `models`."""
    with s3_server() as address:
        yield address


def place(server: str, name: str) -> Bucket:
    return Bucket(Location("models", f"own/{name}"), server, 20)


def objects(bucket: Bucket) -> dict[str, bytes]:
    return {name: bucket.read(name) for name in bucket.names()}


@pytest.fixture
def config(tmp_path: Path, server: str) -> Path:
    """A config file whose runs are copied to the bucket."""
    path = tmp_path / "c.yaml"
    tree = fake_tree(tmp_path, rounds=1, storage={"url": URL, "endpoint_url": server})
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def pawl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_run_of_the_same_name_on_a_fresh_machine_is_refused_and_ruins_nothing(
    tmp_path: Path, server: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = pawl("run", config, "--name", "first", "--runs-dir", tmp_path / "one")
    assert done.exit_code == 0, done.output
    before = objects(place(server, "first"))
    again = ("run", config, "seed=9", "--name", "first", "--runs-dir", tmp_path / "two")
    refused = pawl(*again)
    assert refused.exit_code == 2, refused.output
    assert run_id_of(RunFolder(tmp_path / "one" / "first")) in refused.stderr
    assert "storage.url and --name" in refused.stderr
    assert objects(place(server, "first")) == before
    assert not (tmp_path / "two").exists()
    # What it says to do, as it says it.
    said = " ".join(refused.stderr.split())
    other = said.split("--name ")[1].split(")")[0]
    renamed = pawl(*again[:3], "--name", other, "--runs-dir", tmp_path / "three")
    assert renamed.exit_code == 0, renamed.output
    monkeypatch.chdir(tmp_path)
    command = shlex.split(said.split("`")[1])
    monkeypatch.setenv(*command[0].split("=", 1))
    resumed = pawl(*command[2:])
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "first-fetched" / "first" / "run.json").is_file()


def test_or_resume_brings_the_other_machines_run_and_goes_on_with_it(
    tmp_path: Path, server: str, config: Path
) -> None:
    assert pawl("run", config, "--name", "moved", "--runs-dir", tmp_path / "one").exit_code == 0
    run_id = run_id_of(RunFolder(tmp_path / "one" / "moved"))
    shutil.rmtree(tmp_path / "one")  # that machine is gone
    there = ("--name", "moved", "--runs-dir", tmp_path / "two", "--or-resume")
    other = pawl("run", config, "seed=9", *there)
    assert other.exit_code == 2, other.output
    assert "seed: 0 -> 9" in other.stderr
    assert not (tmp_path / "two").exists()
    done = pawl("run", config, *there)
    assert done.exit_code == 0, done.output
    assert run_id_of(RunFolder(tmp_path / "two" / "moved")) == run_id
    assert pawl("verify", tmp_path / "two" / "moved").exit_code == 0


def test_or_resume_begins_a_run_where_there_is_none(tmp_path: Path, config: Path) -> None:
    runs = ("--runs-dir", tmp_path / "runs")
    done = pawl("run", config, "--name", "new", "--or-resume", *runs)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("attempt", range(3))
def test_of_runs_that_claim_a_place_at_once_exactly_one_gets_it(server: str, attempt: int) -> None:
    bucket = place(server, f"race-{attempt}")

    def claim(run_id: str) -> bool:
        try:
            claim_place(bucket, run_id)
        except ConfigurationError:
            return False
        return True

    names = [f"run{i}" for i in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        won = [n for n, ok in zip(names, pool.map(claim, names), strict=True) if ok]
    assert len(won) == 1
    assert owner_of(bucket) == won[0]
    assert [claim(n) for n in names] == [n in won for n in names]  # for good


def test_a_claim_goes_on_where_it_was_cut_off_and_waits_for_one_that_may_still_win(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = place(server, "cut-off")
    bucket.put("owners/aaa.1", b"")  # died before it could look
    assert owner_of(bucket) == "aaa"
    monkeypatch.setattr("orchestrator.storage.owner.UNDECIDED_SECONDS", 0.3)
    with pytest.raises(StorageError, match=r"remove s3://models/own/cut-off/owners/aaa\.1") as left:
        claim_place(bucket, "bbb")
    assert left.value.exit_code == 75
    with pytest.raises(ConfigurationError, match="run id bbb"):
        claim_place(bucket, "aaa")  # the same run, started again: it finds that it came second
    claim_place(bucket, "bbb")
    assert owner_of(bucket) == "bbb"


def test_a_copy_of_an_older_pawl_belongs_to_the_run_that_its_identity_names(server: str) -> None:
    bucket = place(server, "older")
    bucket.put("run.json", b'{"run_id": "old"}')
    with pytest.raises(ConfigurationError, match="run id old"):
        claim_place(bucket, "new")
    assert read_claims(bucket).levels == {}  # the refused one left nothing
    claim_place(bucket, "old")
    assert owner_of(bucket) == "old"


def local_run(root: Path, **storage: Any) -> RunFolder:
    run = RunFolder(root / "run")
    run_experiment(RunConfig.model_validate(fake_tree(root, rounds=1)), run, source="")
    return run


def test_a_file_of_the_same_size_and_other_content_is_sent_again(
    tmp_path: Path, server: str
) -> None:
    run = local_run(tmp_path)
    settings = StorageSettings(url=URL, endpoint_url=server)
    Mirror(settings, run, epoch=1).close(failed=False)
    bucket = place(server, "run")
    name = "config.source.yaml"
    (run.path / name).write_text("# as given\n")
    Mirror(settings, run, epoch=2).close(failed=False)
    (run.path / name).write_text("# AS GIVEN\n")
    bucket.remove("rounds/0001/prompts.parquet")  # lost there, whatever was recorded
    bucket.put("epochs/.DS_Store", b"")  # no claim
    bucket.put("mirror/notes.json", b"")
    Mirror(settings, run, epoch=3).close(failed=False)
    assert bucket.read(name) == b"# AS GIVEN\n"
    assert "rounds/0001/prompts.parquet" in bucket.names()


def test_a_run_is_not_fetched_into_a_folder_with_something_else(
    tmp_path: Path, server: str
) -> None:
    run = local_run(tmp_path)
    settings = StorageSettings(url=URL + "/fetch", endpoint_url=server)
    Mirror(settings, run, epoch=1).close(failed=False)
    address = f"{URL}/fetch/run"
    foreign = tmp_path / "taken" / "run" / "rounds" / "0001"
    foreign.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"not empty.*--runs-dir taken-fetched"):
        fetch_run(address, tmp_path / "taken", endpoint_url=server)
    fetched = fetch_run(address, tmp_path / "half", endpoint_url=server)
    fetched.identity.unlink()  # as if it had been cut off
    assert fetch_run(address, tmp_path / "half", endpoint_url=server).identity.is_file()
    bucket = place(server, "fetch/run")
    bucket.put("run.json", bucket.read("run.json").replace(b'"run_id"', b'"run_id": "x", "was"'))
    with pytest.raises(CorruptStateError, match=r"run\.json is not what was sent"):
        fetch_run(address, tmp_path / "ruined", endpoint_url=server)
    assert not (tmp_path / "ruined").exists()


def test_the_plan_says_whose_the_place_is_and_warns_where_nobody_answers(
    tmp_path: Path, server: str
) -> None:
    place(server, "planned").put("run.json", b'{"run_id": "theirs"}')

    def verdict(**storage: Any) -> list[tuple[str, str]]:
        tree = fake_tree(tmp_path, storage={"url": URL, "timeout_seconds": 2} | storage)
        plan = make_plan(RunConfig.model_validate(tree), run_folder=tmp_path / "planned")
        return [(line.verdict, line.found) for line in plan.lines if line.what == "storage"]

    ((first, said),) = verdict(endpoint_url=server)
    assert (first, "run id theirs" in said) == ("problem", True)
    ((second, said),) = verdict(endpoint_url="http://127.0.0.1:1")
    assert (second, "storage.endpoint_url" in said) == ("warning", True)
