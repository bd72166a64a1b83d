"""The driver's end of the file transfer: what it serves, what it refuses, and what it takes in."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.files import load_config
from orchestrator.rounds.transfers import WRITABLE, models_of
from policies.base.errors import ArtifactError, ConfigurationError, LeaseError, StorageError
from policies.storage.faulty_files import FailingDisk
from policies.storage.files import FileLayer, using
from policies.storage.policy_store import PolicyStore
from workers.cluster.transfer.server import FileServer
from workers.cluster.transfer.shared_folder import RunFiles

DRAFT = "rounds/0001/attempts/e000001-0001/trajectories/shard-0000.parquet"


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    root, model = tmp_path / "run", tmp_path / "model"
    for path in (root / "journal.jsonl", root / "policies/0001/a.safetensors", model / "weights"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789")
    (tmp_path / "secret").write_text("not the run's")
    (root / "rounds/0001").mkdir(parents=True)
    return RunFiles(
        root=str(root),
        token_path=str(root / "activity/seen.json"),
        token="5f",
        shared=False,
        readable=(str(model),),
        writable=WRITABLE,
    )


def sent(server: FileServer, path: str, data: bytes, *, upload: str = "u1") -> None:
    server.put(path, upload, 0, data)
    server.settle(path, upload, len(data), hashlib.sha256(data).hexdigest())


def test_the_run_and_its_models_are_read_and_unfinished_files_are_not_listed(
    files: RunFiles, tmp_path: Path
) -> None:
    server = FileServer(files)
    (tmp_path / "model/.weights.1.tmp").write_bytes(b"half")
    listed = server.facts(
        [files.root + "/policies/0001", str(tmp_path / "model"), files.root + "/no"]
    )
    assert [(Path(f.path).name, f.size) for f in listed] == [("a.safetensors", 10), ("weights", 10)]
    assert server.piece(files.root + "/journal.jsonl", 4, 3) == b"456"
    assert server.piece(files.root + "/journal.jsonl", 10, 3) == b""
    assert server.sha256(files.root + "/journal.jsonl") == hashlib.sha256(b"0123456789").hexdigest()


READS: dict[str, Callable[[FileServer, str], object]] = {
    "facts": lambda server, path: server.facts([path]),
    "piece": lambda server, path: server.piece(path, 0, 10),
    "sha256": lambda server, path: server.sha256(path),
}
WRITES: dict[str, Callable[[FileServer, str], object]] = {
    "put": lambda server, path: server.put(path, "u", 0, b"x"),
    "settle": lambda server, path: server.settle(
        path, "u", 10, hashlib.sha256(b"0123456789").hexdigest()
    ),
    "settle_folder": lambda server, path: server.settle_folder(path, "u"),
    "grow": lambda server, path: server.grow(path, 0, b"x"),
    "tell": lambda server, path: server.tell(path, {}),
    "remove": lambda server, path: server.remove(path),
}
OUTSIDE = (
    "{root}/../secret",
    "{root}/rounds/0001/attempts/../../../../secret",
    "{root}/rounds/0001/attempts/../../../journal.jsonl",
    "{home}/secret",
    "{home}",
    "run/journal.jsonl",
    "",
    "/etc/passwd",
    "{root}/journal.jsonl\0",
    "{root}x/journal.jsonl",
)


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_nothing_outside_the_run_is_read_or_written(
    files: RunFiles, tmp_path: Path, method: str, path: str
) -> None:
    before = everything(tmp_path)
    with pytest.raises(ArtifactError, match="refused"):
        (READS | WRITES)[method](FileServer(files), path.format(root=files.root, home=tmp_path))
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "path",
    [
        "journal.jsonl",
        "run.json",
        "epochs/000002.json",
        "policies/0001/a.safetensors",
        "rounds/0001/trajectories/shard-0000.parquet",
        "rounds/0001/train/candidate/a.safetensors",
        "rounds/0001/attempts",
        "activity",
        "rounds/0001/x/attempts/e1",
    ],
)
@pytest.mark.parametrize("method", WRITES)
def test_what_a_driver_commits_is_written_by_no_worker(
    files: RunFiles, tmp_path: Path, method: str, path: str
) -> None:
    before = everything(tmp_path)
    with pytest.raises(ArtifactError, match="workers write drafts"):
        WRITES[method](FileServer(files), f"{files.root}/{path}")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_a_link_leads_nobody_out_of_the_run(files: RunFiles, tmp_path: Path, method: str) -> None:
    attempts = Path(files.root) / "rounds/0001/attempts"
    attempts.symlink_to(tmp_path, target_is_directory=True)
    before = everything(tmp_path)
    with pytest.raises(ArtifactError, match="refused"):
        (READS | WRITES)[method](FileServer(files), f"{attempts}/secret")
    assert everything(tmp_path) == before


def test_a_model_of_the_hub_is_read_through_the_links_of_its_cache(tmp_path: Path) -> None:
    hub = tmp_path / "hub/models--a--b"
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs/9f").write_bytes(b"weights")
    model = hub / "snapshots/c0ffee"
    model.mkdir(parents=True)
    (model / "model.safetensors").symlink_to("../../blobs/9f")
    store = PolicyStore(tmp_path / "run/policies")
    store.adopt_initial(model)
    models = models_of(load_config("fake-smoke").config, store)
    files = RunFiles(str(tmp_path / "run"), "", "", readable=models)
    listed = FileServer(files).facts([str(model)])
    assert [(f.path, f.size) for f in listed] == [(str(model / "model.safetensors"), 7)]


def test_a_link_in_a_listed_folder_leads_nobody_out_either(files: RunFiles, tmp_path: Path) -> None:
    (Path(files.root) / "policies/0001/b").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="refused"):
        FileServer(files).facts([files.root + "/policies/0001"])


@pytest.mark.parametrize("upload", ["../../x", "a/b", "\0"])
def test_the_name_of_an_upload_is_no_path(files: RunFiles, tmp_path: Path, upload: str) -> None:
    before = everything(tmp_path)
    with pytest.raises(ArtifactError, match="name of an upload"):
        FileServer(files).put(f"{files.root}/{DRAFT}", upload, 0, b"x")
    assert everything(tmp_path) == before


def test_a_file_gets_its_name_when_all_of_it_arrived_and_pieces_may_come_twice(
    files: RunFiles,
) -> None:
    server, path = FileServer(files), f"{files.root}/{DRAFT}"
    whole = hashlib.sha256(b"abcdef").hexdigest()
    for offset, data in ((0, b"abc"), (0, b"abc"), (3, b"def"), (3, b"def")):
        server.put(path, "u1", offset, data)
        assert not Path(path).exists()
    server.settle(path, "u1", 6, whole)
    server.settle(path, "u1", 6, whole)
    assert Path(path).read_bytes() == b"abcdef"
    assert [p.name for p in Path(path).parent.iterdir()] == [Path(path).name]


@pytest.mark.parametrize("arrived", [b"abcdeX", b"abcde", b""])
def test_what_did_not_arrive_as_it_was_sent_gets_no_name(files: RunFiles, arrived: bytes) -> None:
    server, path = FileServer(files), f"{files.root}/{DRAFT}"
    server.put(path, "u1", 0, arrived)
    with pytest.raises(ArtifactError, match="did not arrive"):
        server.settle(path, "u1", 6, hashlib.sha256(b"abcdef").hexdigest())
    assert not Path(path).exists()


def test_a_piece_that_leaves_a_gap_is_refused(files: RunFiles) -> None:
    with pytest.raises(ArtifactError, match="next piece begins at 3"):
        FileServer(files).put(f"{files.root}/{DRAFT}", "u1", 3, b"def")


def test_after_the_run_was_taken_over_nothing_is_taken_in(files: RunFiles) -> None:
    def lost() -> None:
        raise LeaseError("epoch 2 holds the run")

    checkpoint = f"{files.root}/rounds/0001/train/checkpoints/000100"
    sent(FileServer(files), f"{checkpoint}/state.json", b"{}")
    sent(FileServer(files), checkpoint.replace("000100", ".000100.u1.tmp/state.json"), b"late")
    server, path = FileServer(replace(files, guard=lost)), f"{files.root}/{DRAFT}"
    late: list[Callable[[], None]] = [
        lambda: sent(server, path, b"late"),
        lambda: server.settle_folder(checkpoint, "u1"),
        lambda: server.remove(checkpoint),
    ]
    for each in late:
        with pytest.raises(LeaseError):
            each()
    assert not Path(path).exists()
    assert Path(checkpoint, "state.json").read_bytes() == b"{}"


def test_a_folder_gets_its_name_whole_and_replaces_a_broken_one(files: RunFiles) -> None:
    server = FileServer(files)
    checkpoint = Path(files.root, "rounds/0001/train/checkpoints/000100")
    sent(server, str(checkpoint / "broken"), b"x")
    sent(server, str(checkpoint.with_name(".000100.u2.tmp") / "state.json"), b"{}")
    server.settle_folder(str(checkpoint), "u2")
    server.settle_folder(str(checkpoint), "u2")
    assert [p.name for p in checkpoint.iterdir()] == ["state.json"]
    assert [p.name for p in checkpoint.parent.iterdir()] == ["000100"]


def test_a_log_grows_and_begins_anew(files: RunFiles) -> None:
    server, path = FileServer(files), f"{files.root}/rounds/0001/attempts/train-e1-1/steps.jsonl"
    for offset, data in ((0, b"1\n"), (2, b"2\n"), (2, b"2\n3\n")):
        server.grow(path, offset, data)
    assert Path(path).read_bytes() == b"1\n2\n3\n"
    server.grow(path, 0, b"9\n")
    assert Path(path).read_bytes() == b"9\n"


def test_a_server_that_sees_another_folder_says_so(files: RunFiles) -> None:
    token = Path(files.token_path)
    token.parent.mkdir()
    token.write_text('"5f"')
    FileServer(files).check()
    token.write_text('"60"')
    with pytest.raises(ConfigurationError, match=r"cluster\.shared_folder"):
        FileServer(files).check()


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """What lies below a folder, links as they are."""
    found: dict[str, bytes | str | None] = {}
    for parent, directories, names in os.walk(folder):
        for name in (*directories, *names):
            path = Path(parent, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


class FailingSync(FileLayer):
    """The first fsync gives an error; later ones say yes, as a system does that has forgotten what it lost."""

    def __init__(self) -> None:
        self.syncs = 0

    def sync(self, path: Path) -> None:
        self.syncs += 1
        if self.syncs == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        super().sync(path)


def test_an_upload_that_did_not_become_durable_is_sent_again_and_not_synced_again(
    files: RunFiles,
) -> None:
    server, path, data = FileServer(files), f"{files.root}/{DRAFT}", b"rows"
    digest = hashlib.sha256(data).hexdigest()
    with using(FailingSync()):
        with pytest.raises(StorageError, match="disk reports an error"):
            sent(server, path, data)
        with pytest.raises(ArtifactError, match="did not arrive"):
            server.settle(path, "u1", len(data), digest)
        sent(server, path, data)
    assert Path(path).read_bytes() == data


def test_a_piece_of_which_the_disk_took_a_part_is_put_again_whole(files: RunFiles) -> None:
    server, path = FileServer(files), f"{files.root}/{DRAFT}"
    server.put(path, "u1", 0, b"first ")
    with using(FailingDisk(1, "half")), pytest.raises(StorageError, match="the disk is full"):
        server.put(path, "u1", 6, b"second")
    server.put(path, "u1", 6, b"second")
    data = b"first second"
    server.settle(path, "u1", len(data), hashlib.sha256(data).hexdigest())
    assert Path(path).read_bytes() == data
