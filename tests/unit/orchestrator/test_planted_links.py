"""A link planted where Pawl creates a file is replaced or refused: what it leads to is never written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runs import lease
from orchestrator.runs.events import EventKind, EventLog, read_events
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Drawn, Phase
from orchestrator.runs.report import write_report
from orchestrator.tracking.spool import SendLock
from policies.base.errors import CorruptStateError
from policies.base.records import Message, Prompt
from policies.storage import files
from policies.storage.artifacts import read_records, write_draft, write_records
from tests.support.bad_rows import TRAIN, Row
from tests.support.run_folders import make_run
from workers.cluster.heartbeat import write_unsynced
from workers.judge.reply_cache import ReplyCache
from workers.training.step_log import log_line

Plant = Callable[[Path], Callable[[], bool]]
"""Plants a link at a path; the answer says whether what it leads to is as it was."""
TREASURE = b'{"of": "somebody else"}\n'


@pytest.fixture(params=[True, False], ids=["link-to-a-file", "dangling-link"])
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Plant:
    def at(path: Path) -> Callable[[], bool]:
        target = tmp_path / "outside"
        if request.param:
            target.write_bytes(TREASURE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return lambda: target.read_bytes() == TREASURE if request.param else not target.exists()

    return at


def put(path: Path) -> None:
    path.write_bytes(b"x")


def prompt() -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content="x"),))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_json(path, {"a": 1}),
        lambda path: files.write_once(path, put),
        lambda path: files.current().fill(path, put),
        lambda path: write_draft(path, Prompt, [prompt()]),
        lambda path: write_unsynced(path, {"a": 1}),
    ],
    ids=["atomically", "once", "temporary", "draft", "unsynced"],
)
def test_a_link_is_replaced_by_the_file(
    tmp_path: Path, plant: Plant, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "run" / "f.parquet"
    untouched = plant(path)
    write(path)
    assert untouched()
    assert path.is_file()
    assert not path.is_symlink()


def test_a_link_at_the_temporary_name_of_a_process_is_replaced(
    tmp_path: Path, plant: Plant
) -> None:
    untouched = plant(tmp_path / "run" / f".a.json.{os.getpid()}.tmp")
    write_unsynced(tmp_path / "run" / "a.json", {"a": 1})
    assert untouched()
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_text("x")

    for _ in range(2):
        files.write_atomically(tmp_path / "run" / "b", write)
    assert len(set(seen)) == 2, "a name that can be foreseen can be planted"


def test_records_that_took_the_place_of_a_link_can_be_read(tmp_path: Path, plant: Plant) -> None:
    path = tmp_path / "run" / "shard-0000.parquet"
    untouched = plant(path)
    write_records(path, Prompt, [prompt()])
    assert untouched()
    assert list(read_records(path, Prompt)) == [prompt()]


def test_a_claim_is_not_written_through_a_link_and_the_heartbeat_replaces_it(
    tmp_path: Path, plant: Plant
) -> None:
    folder = RunFolder(tmp_path / "run")
    untouched = plant(folder.driver)
    assert not files.create_exclusively(folder.driver, b"{}")
    with lease.claim(folder):
        assert untouched()
        assert not folder.driver.is_symlink()
    claims = RunFolder(tmp_path / "another")
    untouched = plant(claims.epochs / "000001.json")
    with lease.claim(claims) as held:
        assert held.claim.epoch == 2
    assert untouched()


def test_the_journal_is_not_written_through_a_link(tmp_path: Path, plant: Plant) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    journal = Journal(path)
    untouched = plant(path)
    with pytest.raises(CorruptStateError, match=r"a link stands where .*journal.jsonl.*Fix: look"):
        journal.append(0, Phase.DRAW, Drawn(num_prompts=0, num_shards=0, digest="d"))
    assert untouched()
    with pytest.raises(CorruptStateError, match="a link stands where"):
        files.cut(path, 1)
    assert untouched()


def test_events_steps_replies_and_locks_are_not_written_through_a_link(
    tmp_path: Path, plant: Plant
) -> None:
    log = EventLog(tmp_path / "run" / "events.jsonl")
    untouched = plant(log.path)
    log.emit(EventKind.WARNING, message="x")  # for people: the run goes on without
    assert untouched()
    assert not any(e.detail.get("message") == "x" for e in read_events(log.path))
    steps = tmp_path / "run" / "steps.jsonl"
    untouched = plant(steps)
    with pytest.raises(CorruptStateError, match=r"a link stands where .*steps\.jsonl"):
        log_line(steps, {"step": 1})
    assert untouched()
    replies = tmp_path / "run" / "judge_cache.jsonl"
    untouched = plant(replies)
    cache = ReplyCache(replies)
    cache.put("k", "text")
    assert cache.get("k") == "text", "replies stay in memory"
    assert untouched()
    untouched = plant(tmp_path / "run" / "lock")
    with pytest.raises(CorruptStateError, match="a link stands where"):
        SendLock(tmp_path / "run").acquire()
    assert untouched()


def test_the_report_takes_the_place_of_a_link(tmp_path: Path, plant: Plant) -> None:
    folder = make_run(tmp_path / "run", rounds=1)
    untouched = plant(folder.path / "report.html")
    page, _ = write_report(folder)
    assert untouched()
    assert not page.is_symlink()


def test_removing_a_folder_that_is_a_link_removes_the_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    link = tmp_path / "attempts"
    link.symlink_to(outside)
    files.remove_tree(link)
    assert not link.is_symlink()
    assert (outside / "kept").exists()


def test_prompt_files_of_the_user_may_be_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Row(0, "good", ("", "", "", "")).spoil(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data.jsonl").write_bytes(TRAIN)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "elsewhere" / "data.jsonl")
    assert CliRunner().invoke(app, ["validate", "c.yaml"]).exit_code == 0
