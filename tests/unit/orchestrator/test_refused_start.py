"""A run that is refused leaves nothing behind, wherever in its start the refusal comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.refused_start import leaving_nothing
from policies.base.errors import ConfigurationError, InputError, LeaseError, RolloutError
from tests.support.bad_rows import Row
from tests.support.fake_runs import arithmetic, fake_config, fake_tree

_REFUSES = """
from orchestrator.acceptance.rules.always import Always
from policies.base.errors import ConfigurationError

class Late(Always):
    def __init__(self, config, **runtime):
        raise ConfigurationError("this machine cannot do it (got 1). Set by: acceptance. Fix: another")
"""


def _names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def _overlapping(tmp_path: Path) -> RunConfig:
    both = {"train": arithmetic("all"), "held_out": arithmetic("all"), "per_round": 6}
    return fake_config(tmp_path, prompts=both, tracking={"uri": f"sqlite:///{tmp_path}/m.db"})


def test_a_refusal_after_the_folder_was_made_removes_it_the_folders_above_and_makes_no_store(
    tmp_path: Path,
) -> None:
    config = _overlapping(tmp_path)
    before = _names(tmp_path)
    with pytest.raises(InputError):
        run_experiment(config, RunFolder(tmp_path / "runs" / "deep" / "r"), source="")
    assert _names(tmp_path) == before


def test_a_refusal_by_a_component_that_is_built_last_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(_REFUSES)
    tree = fake_tree(tmp_path, acceptance={"type": f"{tmp_path}/late.py:Late"})
    config = RunConfig.model_validate(tree)
    before = {n for n in _names(tmp_path) if "__pycache__" not in n}
    with pytest.raises(ConfigurationError, match="this machine cannot do it"):
        run_experiment(config, RunFolder(tmp_path / "runs" / "r"), source="")
    assert {n for n in _names(tmp_path) if "__pycache__" not in n} == before


def test_what_lay_in_the_folder_before_a_refused_start_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.path.mkdir()
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(InputError):
        run_experiment(_overlapping(tmp_path), folder, source="")
    assert _names(folder.path) == {"notes.txt"}


def _start(folder: RunFolder, fence: Callable[[], None] | None, error: Exception) -> None:
    """Begin a run that ends with `error`, after it has made a folder."""
    with leaving_nothing(folder) as start:
        start.fence = fence
        (folder.path / "made").mkdir(parents=True, exist_ok=True)
        raise error


def test_a_run_that_another_process_took_over_is_not_removed(tmp_path: Path) -> None:
    def lost() -> None:
        raise LeaseError("another process has it")

    folder = RunFolder(tmp_path / "r")
    for fence in (lost, None):
        with pytest.raises(InputError):
            _start(folder, fence, InputError("refused"))
        assert folder.path.is_dir()


def test_a_run_with_results_or_another_end_than_a_refusal_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    with pytest.raises(RolloutError):
        _start(folder, lambda: None, RolloutError("an engine failed"))
    folder.journal.write_text("a finished phase\n")
    with pytest.raises(InputError):
        _start(folder, lambda: None, InputError("refused in a later round"))
    assert _names(folder.path) == {"journal.jsonl", "made"}


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("storage.url=file:///etc", "not an address of object storage (got 'file:///etc')"),
        ("storage.url=s3://", "not an address of object storage"),
        ("storage.url=s3://b/../c", "not an address of object storage"),
        ("storage.url=''", "not an address of object storage"),
        ("storage.endpoint_url=file:///etc", "no address of a server"),
        ("storage.endpoint_url=http://host:99999", "no address of a server"),
    ],
)
def test_an_address_that_the_copy_cannot_use_is_refused_when_the_config_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Row(0, "good", ("", "", "", "")).spoil(tmp_path)
    before = _names(tmp_path)
    for command in ("validate", "plan", "run"):
        done = CliRunner().invoke(app, [command, "c.yaml", override])
        assert (done.exit_code, what in done.stderr, "Fix: " in done.stderr) == (2, True, True)
        assert f"Set on the command line by {override.partition('=')[0]}=" in done.stderr
    assert _names(tmp_path) == before


def test_the_remedies_for_an_address_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Row(0, "good", ("", "", "", "")).spoil(tmp_path)
    good = ["storage.url=s3://BUCKET/PREFIX", "storage.endpoint_url=http://10.0.0.5:9000"]
    assert CliRunner().invoke(app, ["validate", "c.yaml", *good]).exit_code == 0
    assert (
        CliRunner().invoke(app, ["validate", "c.yaml", "storage.endpoint_url=null"]).exit_code == 0
    )
