"""A read that the machine refuses says nothing of the file: no reader that decides takes it for damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import read_identity
from orchestrator.runs.journal_reading import read_heads
from orchestrator.runs.stored_config import read_object
from policies.base.errors import StorageError
from policies.storage.fake_model import read_skill
from policies.storage.files import disk_errors_told
from policies.storage.policy_store import read_manifest
from tests.support.fake_runs import fake_config
from tests.support.no_file_opens import no_file_opens

READERS: dict[str, Callable[[RunFolder], object]] = {
    "config": lambda run: read_object(run.config),
    "identity": read_identity,
    "heads": lambda run: read_heads(run.epochs),
    "manifest": lambda run: read_manifest(run.policies / "0001", 1),
    "fake policy": lambda run: read_skill(run.policies / "0001"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    home = tmp_path_factory.mktemp("refused")
    folder = RunFolder(home / "run")
    run_experiment(fake_config(home, rounds=1), folder, source="")
    return folder


@pytest.mark.parametrize("name", READERS)
def test_no_reader_takes_a_refused_read_for_damage(name: str, run: RunFolder) -> None:
    assert READERS[name](run)
    with no_file_opens(), pytest.raises(StorageError), disk_errors_told():  # as a run does
        READERS[name](run)
