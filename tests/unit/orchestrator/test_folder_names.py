"""Foreign names in a run folder are ignored, with a note, by every command that looks into it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from policies.storage.folder_names import is_leftover_of_others, numbered, shown, strangers
from tests.support.cut_journals import cut_journal
from tests.support.fake_runs import fake_tree
from workers.training.checkpoints.store import newest_step

FOREIGN_FILES = (
    b".DS_Store", b"._0001", b".nfs000000000123", b".0001.swp", b"Thumbs.db", b"desktop.ini",
    b"notes.txt", b"000001.json~", b"#0001#", b"0001.bak", b"0001.orig", b"0001.old", b"0001 (1)",
    b"1.json.bak", b"shard-abc.parquet", b"shard-0001 (1).parquet", b"shard-1.parquet.json",
    b"shard-0000.parquet~", b"shard-0000.parquet.json.bak", b"policy-abc.json", b"policy-1.json",
    b"worker-\xff.txt", b"caf\xe9", "größe".encode(), "０００１".encode(), "²".encode(), b" ",
    b"-rf", b"x" * 200, b"a\nb", b"*", b"%s{}",
)  # fmt: skip
FOREIGN_FOLDERS = (
    b"1", b"00001", b"0001a", b"round-abc", b"0002.part", b"again-x", b"again-1", b".git",
    b"lost+found", b"99999999999999999999", b"worker-x.jsonl",
)  # fmt: skip


def plant(root: Path) -> int:
    """Put every foreign name into every folder of a run; returns how many."""
    planted = 0
    for folder in [root, *(p for p in sorted(root.rglob("*")) if p.is_dir())]:
        if folder.name == "attempts" or "epochs" in folder.parts:
            continue  # claims have tests of their own
        base = os.fsencode(folder)
        in_policy = folder.parent.name == "policies"
        for name in FOREIGN_FILES:
            if in_policy and name.endswith(b".json"):
                continue  # beside weights a library may read it: such a version is not what was published
            path = os.path.join(base, name)
            if not os.path.lexists(path):
                with open(path, "wb") as handle:
                    handle.write(b"\xff\x00 foreign")
                planted += 1
        for name in FOREIGN_FOLDERS:
            os.makedirs(os.path.join(base, name), exist_ok=True)
            planted += 1
    return planted


def pawl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run."""
    root = tmp_path_factory.mktemp("clean")
    run = RunFolder(root / "run")
    config = RunConfig.model_validate(fake_tree(root, rounds=2))
    run_experiment(config, run, source="")
    return run


@pytest.fixture(scope="module")
def littered(clean: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run with foreign names everywhere."""
    path = tmp_path_factory.mktemp("littered") / "run"
    shutil.copytree(clean.path, path)
    assert plant(path) > 31 * 10
    return RunFolder(path)


@pytest.mark.parametrize(
    "command",
    [("status",), ("status", "--json"), ("show",), ("show", "--trajectories"), ("show", "--pairs"),
     ("show", "--feedback"), ("resume",)],
    ids=" ".join,
)  # fmt: skip
def test_a_command_says_of_a_littered_run_what_it_says_of_a_clean_one(
    clean: RunFolder, littered: RunFolder, command: tuple[str, ...]
) -> None:
    name, *options = command
    answers = [pawl(name, run.path, *options) for run in (clean, littered)]
    assert [a.exit_code for a in answers] == [0, 0], answers[1].output
    paths = (str(clean.path), str(littered.path))
    texts = [a.output.replace(path, "RUN") for a, path in zip(answers, paths, strict=True)]
    assert texts[0] == texts[1]


def test_doctor_finds_no_more_in_a_littered_run(clean: RunFolder, littered: RunFolder) -> None:
    codes = {pawl("doctor", run.path).exit_code for run in (clean, littered)}
    assert len(codes) == 1
    assert codes <= {0, 1}


def test_an_example_of_a_littered_run_can_be_traced(littered: RunFolder) -> None:
    from policies.examples.kinds import PreferencePair
    from policies.storage.artifacts import read_records

    pair = read_records(littered.round(1).shards("examples")[0], PreferencePair)[0]
    assert pawl("trace", littered.path, pair.id).exit_code == 0


def test_verify_calls_a_littered_run_whole_and_notes_what_is_foreign(littered: RunFolder) -> None:
    told = pawl("verify", littered.path, "--deep", "--json")
    assert told.exit_code == 0, told.output
    assert "rounds/0001/trajectories/shard-abc.parquet is nobody's" in told.output
    assert "policies/0001.bak is nobody's" in told.output
    assert pawl("verify", littered.path).exit_code == 0  # as text, whatever bytes the names have


def test_a_littered_run_that_was_cut_off_goes_on_to_the_same_journal(
    clean: RunFolder, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(clean.path, path)
    whole = (path / "journal.jsonl").read_bytes()
    cut_journal(RunFolder(path), len(whole.splitlines()) - 2)
    plant(path)
    done = pawl("resume", path)
    assert done.exit_code == 0, done.output
    assert (path / "journal.jsonl").read_bytes() == whole
    assert (path / "rounds" / "0001" / ".DS_Store").exists()  # nobody's business


def test_only_numbers_as_a_run_writes_them_are_taken(tmp_path: Path) -> None:
    for name in ("0001", "0010", "10000", "00002", "1", "0003.bak", "٠٠٠٤", "-001", "0001\n"):
        (tmp_path / name).mkdir()
    assert [n for n, _ in numbered(tmp_path)] == [1, 10, 10000]
    assert numbered(tmp_path / "missing") == []
    assert numbered(tmp_path, prefix="shard-", suffix=".parquet") == []
    known = [path for _, path in numbered(tmp_path)]
    (tmp_path / ".0001.7.tmp").touch()  # ours
    assert len(strangers(tmp_path, known)) == 6


def test_steps_of_checkpoints_are_ours_or_nobodys(tmp_path: Path) -> None:
    for name in ("000004", "²", "7", "000009.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "COMMIT.json").touch()
    assert newest_step(tmp_path) == 4


@pytest.mark.parametrize("name", ["run.json", "0001", "model.safetensors", ".x.12.tmp", "a.tmp"])
def test_names_that_may_be_ours_are_no_leftover_of_others(name: str) -> None:
    assert not is_leftover_of_others(name)


def test_a_name_that_is_no_text_is_shown_escaped() -> None:
    assert shown(Path(os.fsdecode(b"caf\xe9"))) == "caf\\xe9"
