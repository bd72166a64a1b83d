"""An update that was cut off goes on from its last whole checkpoint, and ends as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from policies.storage.artifacts import file_sha256
from policies.storage.policy_store import weight_files
from tests.support.cut_updates import CutOffError, cut_at
from tests.support.training_cases import (
    examples_of,
    log_of,
    make_engine,
    make_job,
    make_loss,
    version,
    write_model,
)
from workers.training.checkpoints.store import MARKER, newest_step
from workers.training.engine import AdapterSettings, UpdateJob, UpdateOutcome
from workers.training.update import run_update

LOSS_OF = {"pair": "dpo", "unpaired": "kto", "supervised": "sft"}
OPTIONS: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_fraction": 0.2,
    "checkpoint_steps": 2,
    "micro_batch_size": 2,
}
LORA = AdapterSettings(rank=2, alpha=4.0, dropout=0.2)
CASES = [
    *[("fake", kind, None) for kind in sorted(LOSS_OF)],
    *[(engine, kind, None) for engine in ("trl", "torch") for kind in sorted(LOSS_OF)],
    *[(engine, kind, LORA) for engine in ("trl", "torch") for kind in ("pair", "unpaired")],
]


def job_in(folder: Path, model: Path, **changes: Any) -> UpdateJob:
    folder.mkdir(exist_ok=True)
    place = {"checkpoint_dir": str(folder / "checkpoints"), **changes}
    return make_job(version(model), folder, **place)


def made(job: UpdateJob) -> dict[str, str]:
    """sha256 of every file of the candidate."""
    folder = Path(job.output_dir)
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


def timeless(outcome: UpdateOutcome) -> UpdateOutcome:
    kept = {n: v for n, v in outcome.metrics.items() if "second" not in n}
    return outcome.model_copy(update={"metrics": kept})


@pytest.mark.parametrize(("engine", "kind", "adapter"), CASES)
def test_an_update_cut_off_twice_ends_with_the_same_bytes_and_each_step_once(
    engine: str, kind: str, adapter: AdapterSettings | None, tmp_path: Path
) -> None:
    model, examples = write_model(engine, tmp_path / "model"), examples_of(kind)
    trainer = make_engine(engine, make_loss(LOSS_OF[kind]), adapter, **OPTIONS)
    whole = job_in(tmp_path / "whole", model, checkpoint_dir=None)
    expected = timeless(run_update(trainer, whole, examples))
    cut = job_in(tmp_path / "cut", model)
    for step, left in ((4, 2), (6, 4)):
        with cut_at(step), pytest.raises(CutOffError):
            run_update(trainer, cut, examples)
        assert newest_step(tmp_path / "cut/checkpoints") == left, (
            "the fault must come after a checkpoint"
        )
        assert not Path(cut.output_dir).exists()
    with cut_at(4):  # a step that is behind the checkpoint is not made again
        assert timeless(run_update(trainer, cut, examples)) == expected
    assert made(cut) == made(whole)
    assert log_of(cut) == log_of(whole)
    assert [row["step"] for row in log_of(cut)] == list(range(1, 7))


@pytest.mark.parametrize(
    "damage", ["no marker", "flipped byte", "cut short", "missing file", "other seed", "other data"]
)
def test_a_checkpoint_that_is_not_whole_or_not_of_this_update_is_passed_over_and_removed(
    damage: str, tmp_path: Path
) -> None:
    model, examples = write_model("fake", tmp_path / "model"), list(examples_of("pair"))
    trainer = make_engine("fake", make_loss("dpo"), **OPTIONS)
    job = job_in(tmp_path / "cut", model)
    with cut_at(4), pytest.raises(CutOffError):
        run_update(trainer, job, examples)
    folder = tmp_path / "cut/checkpoints/000002"
    state = folder / "state.json"
    if damage == "no marker":
        (folder / MARKER).unlink()
    elif damage == "flipped byte":
        state.write_bytes(state.read_bytes().replace(b"log", b"lag"))
    elif damage == "cut short":
        state.write_bytes(state.read_bytes()[:-5])
    elif damage == "missing file":
        state.unlink()
    elif damage == "other seed":
        job = job.model_copy(update={"seed": 8})
    else:
        examples = examples[:-1]
    (tmp_path / "cut/checkpoints/.000004.77.tmp").mkdir()
    with cut_at(1), pytest.raises(CutOffError):  # the first step is made again
        run_update(trainer, job, examples)
    assert list((tmp_path / "cut/checkpoints").iterdir()) == []


def test_a_checkpoint_survives_that_its_run_folder_is_moved(tmp_path: Path) -> None:
    model, examples = write_model("fake", tmp_path / "model"), examples_of("pair")
    trainer = make_engine("fake", make_loss("dpo"), **OPTIONS)
    with cut_at(4), pytest.raises(CutOffError):
        run_update(trainer, job_in(tmp_path / "here", model), examples)
    shutil.move(tmp_path / "here", tmp_path / "there")
    shutil.move(model, tmp_path / "moved")
    with cut_at(1):
        outcome = run_update(trainer, job_in(tmp_path / "there", tmp_path / "moved"), examples)
    assert outcome.num_steps == 6


def test_without_a_cadence_only_updates_of_many_minutes_write_checkpoints(tmp_path: Path) -> None:
    model, examples = write_model("fake", tmp_path / "model"), examples_of("pair")
    quick = make_engine("fake", make_loss("dpo"))
    run_update(quick, job_in(tmp_path / "quick", model), examples)
    assert not (tmp_path / "quick/checkpoints").exists()
    slow = make_engine("fake", make_loss("dpo"), checkpoint_seconds=1e-9)
    run_update(slow, job_in(tmp_path / "slow", model), examples)
    assert newest_step(tmp_path / "slow/checkpoints") == 2, (
        "the last step's weights are the result itself"
    )
    assert weight_files(tmp_path / "slow/new")
