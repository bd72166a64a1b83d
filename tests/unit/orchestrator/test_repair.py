"""Damage between two drives of a run: named, put aside, made again where that is possible; never trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.inspect.audit.run import audit
from orchestrator.runs.events import Event, EventKind
from orchestrator.runs.folder import RunFolder
from policies.base.errors import CorruptPolicyError, CorruptStateError, PlugInChangedError
from policies.storage.artifacts import find_damage, marker_path
from tests.support.fake_runs import fake_config


class Stopped(BaseException):
    """Ends the driver where a test wants it."""


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    """A round of two shards of two prompts."""
    sizes = {"rounds": 1, "high": 4, "held_out": 2, "per_round": 4, "per_shard": 2}
    return fake_config(tmp_path, **(sizes | changes))


def stop_before(phase: str) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        at = (event.kind, event.round, event.phase)
        if at == (EventKind.PHASE_STARTED, 1, phase):
            raise Stopped

    return observe


def run_until(tmp_path: Path, phase: str, **changes: Any) -> RunFolder:
    """A run that ended right before a phase of round 1."""
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Exception, match="Stopped"):
        run_experiment(
            config(tmp_path, **changes), folder, source="", observers=[stop_before(phase)]
        )
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a run that nothing happened to."""
    tmp_path = tmp_path_factory.mktemp("whole")
    run_experiment(config(tmp_path), RunFolder(tmp_path / "run"), source="")
    return (tmp_path / "run" / "journal.jsonl").read_bytes()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        ("train", "rounds/0001/examples/shard-0001.parquet"),
        ("train", "rounds/0001/examples/shard-0000.parquet.json"),
        ("collect", "rounds/0001/prompts/shard-0001.parquet"),
        ("collect", "rounds/0001/prompts.parquet"),
        ("evaluate", "rounds/0001/evaluate/prompts/shard-0000.parquet"),
        ("evaluate", "policies/0001/model.safetensors"),
        ("sync", "policies/0001/manifest.json"),
    ],
)
def test_what_can_be_made_again_is_put_aside_made_again_and_the_run_ends_the_same(
    tmp_path: Path, phase: str, what: str, undisturbed: bytes
) -> None:
    folder = run_until(tmp_path, phase)
    flip(folder.path / what)
    resume_experiment(folder)
    assert folder.journal.read_bytes() == undisturbed
    reasons = [json.loads(p.read_text()) for p in folder.quarantine.rglob("*.reason.json")]
    assert len(reasons) == 1
    assert what.startswith(reasons[0]["file"].removesuffix(".json"))
    assert reasons[0]["why"]
    if what.endswith(".parquet"):
        assert find_damage(folder.path / what) is None


def test_a_serving_policy_that_was_damaged_stops_the_run_and_is_named(tmp_path: Path) -> None:
    folder = run_until(tmp_path, "sync", rounds=2)
    resume_until_round(folder, 2)
    flip(folder.path / "policies/0001/model.safetensors")
    with pytest.raises(CorruptPolicyError, match=r"model\.safetensors changed") as caught:
        resume_experiment(folder)
    assert caught.value.exit_code == 3
    assert (folder.path / "policies/0001/model.safetensors").exists(), "it stays to be restored"


def resume_until_round(folder: RunFolder, index: int) -> None:
    def observe(event: Event) -> None:
        if event.kind is EventKind.PHASE_STARTED and event.round == index:
            raise Stopped

    with pytest.raises(Exception, match="Stopped"):
        resume_experiment(folder, [observe])


def test_a_damaged_reference_is_never_trained_against(tmp_path: Path) -> None:
    training = {"engine": {"type": "fake"}, "reference": {"type": "rounds_ago", "rounds": 1}}
    folder = run_until(tmp_path, "sync", rounds=3, training=training)
    resume_until_round(folder, 3)
    flip(folder.path / "policies/0001/model.safetensors")  # serves no more; the next reference
    with pytest.raises(
        CorruptPolicyError, match=r"version 1 is not what was published: model\.safetensors changed"
    ):
        resume_experiment(folder)
    assert not folder.round(3).candidate.exists()


def test_a_damaged_optimizer_state_is_never_carried_over(tmp_path: Path) -> None:
    training = {"engine": {"type": "fake"}, "optimizer": "carry"}
    folder = run_until(tmp_path, "sync", rounds=2, training=training)
    resume_until_round(folder, 2)
    state = folder.round(1).optimizer_state
    flip(state)
    with pytest.raises(CorruptStateError, match=rf"{state.name} changed since round 1") as caught:
        resume_experiment(folder)
    assert caught.value.exit_code == 3
    state.unlink()
    assert resume_experiment(folder).results[-1].round == 2


def test_a_manifest_that_contradicts_itself_stops_the_run(tmp_path: Path) -> None:
    folder = run_until(tmp_path, "train")
    manifest = folder.path / "policies/0000/manifest.json"
    tree = json.loads(manifest.read_text())
    tree["digest"] = "0" * 64
    manifest.write_text(json.dumps(tree))
    with pytest.raises(CorruptPolicyError, match=r"manifest of policy version 0.*changed since"):
        resume_experiment(folder)


def test_a_changed_journal_line_stops_the_run_with_its_number(tmp_path: Path) -> None:
    folder = run_until(tmp_path, "train")
    lines = folder.journal.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"num_prompts":4', b'"num_prompts":5')
    lines[1] = lines[1].replace(b'"eval/prompts":2.0', b'"eval/prompts":3.0')
    folder.journal.write_bytes(b"\n".join(lines))
    with pytest.raises(CorruptStateError, match=r"journal\.jsonl:2 cannot be read.*seal") as caught:
        resume_experiment(folder)
    assert caught.value.exit_code == 3


def test_a_verifier_file_that_changed_in_the_middle_of_a_round_is_noticed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def score(prompt, completion, answer):\n    return str(answer) in completion\n"
    )
    folder = RunFolder(tmp_path / "run")

    def observe(event: Event) -> None:
        if event.kind is EventKind.SHARD_STAGE_FINISHED and event.detail["stage"] == "prefer":
            raise Stopped

    settings = config(tmp_path, verifiers=[{"type": f"{mine}:score", "name": "mine"}])
    with pytest.raises(Exception, match="Stopped"):
        run_experiment(settings, folder, source="", observers=[observe])
    mine.write_text("def score(prompt, completion, answer):\n    return 1.0\n")
    with pytest.raises(PlugInChangedError, match=r"mine\.py was edited"):
        resume_experiment(folder)


def test_leftovers_of_a_dead_driver_are_gone_after_a_resume(tmp_path: Path) -> None:
    folder = run_until(tmp_path, "train")
    litter = [
        folder.round(1).attempts / "e000001-0009" / "trajectories" / "shard-0000.parquet",
        folder.round(0).attempts / "e000001-0001" / "zombie",
        folder.round(1).path / "trajectories" / ".shard-0000.parquet.json.77.tmp",
        folder.path / ".driver.json.77.tmp",
        folder.path / "policies" / "0000" / ".manifest.json.77.tmp",
    ]
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    resume_experiment(folder)
    assert [str(p) for p in folder.path.rglob("*.tmp")] == []
    assert [str(p) for p in folder.path.rglob("attempts")] == []
    assert not marker_path(litter[0]).exists()


def test_a_reason_that_was_half_written_when_the_driver_died_is_no_fault_and_goes_at_the_resume(
    tmp_path: Path,
) -> None:
    folder = run_until(tmp_path, "train")
    half = folder.quarantine / "rounds/0001/examples/.shard-0000.parquet.reason.json.812.tmp"
    half.parent.mkdir(parents=True)
    half.write_text('{"why', encoding="utf-8")
    check = audit(folder)["quarantine"]
    assert check.problems == []
    assert check.notes == [f"{half} was left behind; a resume removes it"]
    resume_experiment(folder)
    assert not half.exists()
    assert audit(folder)["quarantine"].notes == []
