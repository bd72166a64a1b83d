"""Run folders that an older Pawl wrote are read whole and gone on with, or refused by the version's name: never half.

`tests/fixtures/runs-of-0cd685b.tar.xz` holds a finished run and one that was killed in the middle of round 2, both of
the same config and seed, as the code of commit 0cd685b wrote them; `@HOME@` stands for the folder they lay in.
"""

from __future__ import annotations

import hashlib
import json
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.app import app
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.folder import RunFolder
from policies.storage.artifacts import write_json

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "runs-of-0cd685b.tar.xz"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Both runs, as if they had been made here; their drivers are dead."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("finished", "unfinished"):
        run = RunFolder(tmp_path / name)
        for path in [run.config, *run.policies.glob("*/manifest.json")]:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("@HOME@", str(tmp_path)), encoding="utf-8")
        config = json.loads(run.config.read_text(encoding="utf-8"))
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        edit(run.identity, config_digest=digest)
    edit(tmp_path / "unfinished" / "driver.json", host=socket.gethostname(), pid=2**22)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def pawl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file of a run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decided(run: RunFolder) -> list[tuple[object, ...]]:
    """What each phase of a run decided, as far as both versions write it."""
    found: list[tuple[object, ...]] = []
    for line in run.journal.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        result = entry["result"]
        names = ("digest", "digests", "version", "after", "status", "reference", "num_examples")
        found.append((entry["round"], entry["phase"], {n: result.get(n) for n in names}))
    return found


@pytest.mark.parametrize("name", ["finished", "unfinished"])
def test_a_run_of_an_older_version_is_read_and_proved_whole(home: Path, name: str) -> None:
    before = content(home / name)
    status = pawl("status", home / name, "--json")
    assert status.exit_code == 0, status.output
    assert len(json.loads(status.output)["rounds"]) == (3 if name == "finished" else 2)
    assert pawl("show", home / name).exit_code == 0
    verified = pawl("verify", home / name, "--deep")
    assert verified.exit_code == 0, verified.output
    asked = pawl("doctor", home / name)
    assert asked.exit_code == (0 if name == "finished" else 1), "an interrupted run is a finding"
    assert "edited" not in asked.output
    assert content(home / name) == before, "looking changes nothing"


def test_an_older_run_goes_on_to_what_the_older_version_came_to(home: Path) -> None:
    run = RunFolder(home / "unfinished")
    before, journal = content(run.path), run.journal.read_bytes()
    done = pawl("resume", run.path)
    assert done.exit_code == 0, done.output
    assert run.journal.read_bytes().startswith(journal), "what had finished is not written again"
    after = content(run.path)
    kept = [
        n for n in before if n.startswith(("rounds/0000", "rounds/0001", "policies", "run.json"))
    ]
    assert len(kept) > 50
    assert {n: after[n] for n in kept} == {n: before[n] for n in kept}
    assert not audit(run, deep=True).num_problems
    assert decided(run) == decided(RunFolder(home / "finished"))
    warned = [
        line for line in run.events.read_text(encoding="utf-8").splitlines() if "older" in line
    ]
    assert len(warned) == 1, "settings that it did not have are named once"
    assert "pawl-lm 0.1.0" in warned[0]
    assert "limits." in warned[0]


def test_a_setting_that_this_version_does_not_know_is_refused_with_the_version_to_use(
    home: Path,
) -> None:
    run = RunFolder(home / "unfinished")
    config = json.loads(run.config.read_text(encoding="utf-8"))
    config["rollout"]["of_another_time"] = 3
    write_json(run.config, config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    edit(run.identity, config_digest=digest)
    before = content(run.path)
    done = pawl("resume", run.path)
    assert done.exit_code == 3, done.output
    assert "of_another_time" in done.output
    assert "pawl-lm 0.1.0" in done.output
    assert content(run.path) == before


def test_an_edited_config_of_an_older_run_is_refused_as_edited(home: Path) -> None:
    edit(home / "unfinished" / "config.json", seed=9)
    done = pawl("resume", home / "unfinished")
    assert done.exit_code == 3
    assert "was edited" in done.output
