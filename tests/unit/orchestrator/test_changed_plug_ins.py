"""A plug-in that is edited while a run is under way: refused with what changed, or taken and recorded; never mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.identity import read_identity
from orchestrator.runs.plug_in_changes import accepted_changes, began_with
from policies.base.errors import CorruptStateError, PlugInChangedError
from policies.plug_ins.plugin_code import PlugInCode, code_of
from policies.storage.artifacts import marker_path, read_marker, write_json
from tests.support.fake_runs import fake_config
from workers.cluster.pinned import PinnedWorker

GRADER = """from rules import right

def score(prompt, completion, answer):
    import late
    return float(right(completion, answer) and late.READY)
"""
RULES = "def right(completion, answer):\n    return str(answer) in completion\n"
STRICT = "def right(completion, answer):\n    return completion.endswith(str(answer))  # other\n"


@pytest.fixture
def grader(tmp_path: Path) -> Path:
    """A function in a file, with a module that it imports and one that it imports when it is called."""
    home = tmp_path / "graders"
    home.mkdir()
    (home / "grader.py").write_text(GRADER)
    (home / "rules.py").write_text(RULES)
    (home / "late.py").write_text("READY = True\n")
    return home / "grader.py"


def begin(tmp_path: Path, grader: Path, watch: Callable[[Event], None]) -> RunFolder:
    """A run that is begun with the grader; what ends it is raised."""
    folder = RunFolder(tmp_path / "run")
    config = fake_config(tmp_path, verifiers=[{"type": f"{grader}:score", "timeout_seconds": 60}])
    run_experiment(config, folder, source="", observers=[watch])
    return folder


def edit_after(phase: str, path: Path, text: str) -> Callable[[Event], None]:
    """Edits `path` once, when `phase` of round 1 begins."""

    def watch(event: Event) -> None:
        begun = event.kind is EventKind.PHASE_STARTED and event.round == 1
        if begun and event.phase == phase:
            path.write_text(text)

    return watch


def test_a_helper_that_is_edited_in_a_round_ends_it_and_is_taken_only_when_that_is_said(
    tmp_path: Path, grader: Path
) -> None:
    rules = grader.with_name("rules.py")
    with pytest.raises(PlugInChangedError, match=r"rules\.py was edited") as refused:
        begin(tmp_path, grader, edit_after("evaluate", rules, STRICT))
    folder = RunFolder(tmp_path / "run")
    assert f"pawl resume {folder.path} --accept-changes" in str(refused.value)
    recorded = read_identity(folder).plug_ins[f"{grader}:score"]
    assert sorted(recorded.files) == ["grader.py", "late.py", "rules.py"]

    plain = CliRunner().invoke(app, ["resume", str(folder.path)])  # the remedy without the flag
    assert plain.exit_code == 3
    assert "rules.py was edited" in plain.output

    taken = CliRunner().invoke(app, ["resume", str(folder.path), "--accept-changes"])
    assert taken.exit_code == 0, taken.output
    (change,) = accepted_changes(folder, began_with(folder))
    assert (change.round, change.after_phase) == (1, "sync")
    assert [c.rpartition(": ")[2] for c in change.changes] == ["rules.py was edited"]
    status = json.loads(CliRunner().invoke(app, ["status", str(folder.path), "--json"]).output)
    assert "from round 1" in status["accepted_changes"][0]
    report = audit(folder)
    assert report.num_problems == 0
    assert any("from round 1" in note for note in report["plug-ins"].notes)

    path = folder.accepted / "0001.json"
    path.write_text(path.read_text().replace('"round": 1', '"round": 2'))
    with pytest.raises(CorruptStateError, match="edited"):
        accepted_changes(folder, began_with(folder))
    assert audit(folder).num_problems


def test_what_is_restored_goes_on_as_if_nothing_had_been_and_a_mixed_round_is_not_whole(
    tmp_path: Path, grader: Path
) -> None:
    late = grader.with_name("late.py")  # imported at the first call only
    with pytest.raises(PlugInChangedError, match=r"late\.py was edited"):
        begin(tmp_path, grader, edit_after("collect", late, "READY = False\n"))
    folder = RunFolder(tmp_path / "run")
    assert not list(folder.round(1).path.glob("verdicts/*.parquet"))  # no verdict of two graders
    late.write_text("READY = True\n")
    assert len(resume_experiment(folder).results) == 3
    assert audit(folder).num_problems == 0
    assert not folder.accepted.exists()
    # A round of two graders is not whole.
    verdicts = folder.round(1).shards("verdicts")
    marker = read_marker(verdicts[0])
    assert marker is not None
    inputs = {**marker.inputs, "plug_ins": "0" * 64}
    other = marker.model_copy(update={"inputs": inputs}).sealed()
    write_json(marker_path(verdicts[0]), other.model_dump(mode="json"))
    report = audit(folder)
    assert report["plug-ins"].num_problems == 1


class Adder:
    """A worker."""

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, number: int) -> int:
        return self.base + number


def test_a_worker_whose_node_has_other_code_is_not_built_and_its_answers_do_not_count(
    grader: Path,
) -> None:
    name = f"{grader}:score"
    code = code_of(name)
    assert code is not None

    def build(held: PlugInCode) -> PinnedWorker:
        return PinnedWorker(
            pinned_factory=Adder, pinned_code={name: held}, pinned_run="runs/a", base=2
        )

    with pytest.raises(PlugInChangedError, match=r"late\.py"):
        build(code.model_copy(update={"files": code.files | {"late.py": "0"}}))
    worker = build(code)
    assert worker.add(3) == 5
    grader.with_name("rules.py").write_text(STRICT)
    with pytest.raises(PlugInChangedError, match=r"rules\.py was edited"):
        worker.add(3)
