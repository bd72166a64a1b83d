"""Runs that start at once never share a folder, and none is told to kill another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lease import claim
from orchestrator.runs.naming import give_back, new_run_folder, take
from policies.base.errors import ConfigurationError, LeaseError
from tests.support.fake_runs import fake_config


def test_runs_that_start_at_once_get_a_name_each(tmp_path: Path) -> None:
    for attempt in range(1, 21):
        chosen = [new_run_folder(tmp_path, None, "sweep") for _ in range(8)]
        assert {c.path.name for c in chosen} == {f"sweep-{8 * attempt - 7}"}  # they saw the same
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda folder: take(folder, automatic=True), chosen))
        assert len({folder.path for folder in taken}) == 8
    assert len(list(tmp_path.iterdir())) == 160


def test_a_name_that_was_given_goes_to_one_and_the_other_is_refused(tmp_path: Path) -> None:
    chosen = new_run_folder(tmp_path, "mine", "sweep")
    folder = take(chosen, automatic=False)
    (folder.path / "run.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="exists already") as refused:
        take(chosen, automatic=False)
    assert refused.value.exit_code == 2


def test_a_start_that_goes_on_elsewhere_is_a_taken_name_and_with_or_resume_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = take(new_run_folder(tmp_path / "runs", "mine", "x"), automatic=False)
    monkeypatch.setattr("orchestrator.runs.lease._is_mine", lambda found: False)
    with claim(folder):  # by a process that has not written run.json yet
        with pytest.raises(ConfigurationError, match="leave --name out") as refused:
            run_experiment(fake_config(tmp_path), folder, source="")
        assert "kill" not in str(refused.value)
        with pytest.raises(LeaseError) as waits:
            run_experiment(fake_config(tmp_path), folder, source="", or_resume=True)
        assert waits.value.exit_code == 75
    assert not folder.identity.exists()


def test_an_automatic_name_leaves_out_those_of_copies_in_the_bucket(tmp_path: Path) -> None:
    taken = ["q-7", "q-3", "other-9", "q-x", "q-12345678901234567890"]
    assert new_run_folder(tmp_path, None, "q", taken=taken).path.name == "q-8"


def test_what_was_refused_gives_its_name_back_and_what_has_files_does_not(tmp_path: Path) -> None:
    empty, full = (take(RunFolder(tmp_path / f"r-{n}"), automatic=True) for n in (1, 2))
    (full.path / "config.json").write_text("{}")
    give_back(empty)
    give_back(full)
    assert (empty.path.exists(), full.path.exists()) == (False, True)


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    arguments = ["run", "fake-smoke", "rounds=0", "--runs-dir", str(tmp_path / "runs")]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert not (tmp_path / "runs").exists()
