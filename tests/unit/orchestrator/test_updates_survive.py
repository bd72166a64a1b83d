"""Whole runs with fakes whose update dies, diverges or is cut off: the run goes on, and nothing shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import RunSummary, resume_experiment, run_experiment
from orchestrator.runs.events import Event, EventKind, read_events
from orchestrator.runs.folder import RunFolder
from policies.base.errors import TrainingError, WorkerMemoryError
from policies.base.records import RoundStatus
from tests.support.fake_runs import fake_config

ENGINE = f"{Path(__file__).parents[2] / 'support/crashing_trainer.py'}:CrashingTrainer"


def settings(tmp_path: Path, name: str, **changes: Any) -> RunConfig:
    notes = tmp_path / f"{name}-notes"
    notes.mkdir(exist_ok=True)
    engine = {"type": ENGINE, "notes": str(notes), **changes.pop("engine", {})}
    training = {"batch_size": 2, "checkpoint_steps": 2, "epochs": 2} | changes.pop("training", {})
    return fake_config(
        tmp_path, **({"rounds": 1} | changes), training=training | {"engine": engine}
    )


def run(tmp_path: Path, name: str, **changes: Any) -> RunSummary:
    config = settings(tmp_path, name, **changes)
    return run_experiment(config, RunFolder(tmp_path / name), source="")


def left(folder: Path) -> dict[str, bytes]:
    """What a run decides and what it learned from: the journal, the step logs, the policies."""
    paths = [
        folder / "journal.jsonl",
        *folder.glob("rounds/*/train/*"),
        *folder.glob("policies/*/*"),
    ]
    return {
        str(p.relative_to(folder)): p.read_bytes().replace(str(folder).encode(), b"RUN")
        for p in paths
    }


def steps_made(tmp_path: Path, name: str) -> list[int]:
    return [int(line) for line in (tmp_path / f"{name}-notes/steps-0").read_text().split()]


def test_an_update_whose_trainer_dies_ends_as_if_it_had_not(tmp_path: Path) -> None:
    run(tmp_path, "whole")
    num_steps = len(steps_made(tmp_path, "whole"))
    assert num_steps >= 6
    # Two deaths before each of two checkpoints: more than max_attempts in all, never so many without progress.
    run(tmp_path, "crashing", engine={"die_at": (3, 4, 5, 6)})
    assert left(tmp_path / "crashing") == left(tmp_path / "whole")
    rest = [5, *range(5, num_steps + 1)]
    assert steps_made(tmp_path, "crashing") == [1, 2, 3, 3, 4, *rest]
    log = tmp_path / "crashing/rounds/0001/train/steps.jsonl"
    made = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert made == list(range(1, num_steps + 1))
    events = read_events(tmp_path / "crashing/events.jsonl")
    warnings = [str(e.detail["message"]) for e in events if e.kind is EventKind.WARNING]
    assert sum("making step 3 and goes on after step 2" in w for w in warnings) == 1
    assert not list((tmp_path / "crashing").rglob("checkpoints"))
    assert not list((tmp_path / "crashing").rglob("attempts/*"))


def test_deaths_at_the_same_step_stop_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"died 3 times .* step 2, while making step 3.*"
    ) as caught:
        run(tmp_path, "doomed", engine={"die_at": (3, 3, 3, 3)})
    assert "cluster.max_attempts" in str(caught.value)
    assert steps_made(tmp_path, "doomed") == [1, 2]


def test_deaths_for_want_of_memory_end_the_run_as_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(WorkerMemoryError, match=r"died 3 times .* ran out of memory") as caught:
        run(tmp_path, "hungry", engine={"die_at": (3, 3, 3), "how": "memory"})
    assert caught.value.exit_code == 75
    resume_experiment(RunFolder(tmp_path / "hungry"))
    run(tmp_path, "whole")
    assert left(tmp_path / "hungry") == left(tmp_path / "whole")


def test_a_resumed_run_goes_on_inside_the_update_that_its_driver_left(tmp_path: Path) -> None:
    run(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt, match="end of the driver"):
        run(tmp_path, "cut", engine={"die_at": (6,), "how": "driver"})
    assert [p.name for p in (tmp_path / "cut/rounds/0001/train/checkpoints").iterdir()] == [
        "000004"
    ]
    resume_experiment(RunFolder(tmp_path / "cut"))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")
    assert steps_made(tmp_path, "cut") == [1, 2, 3, 4, 5, *steps_made(tmp_path, "whole")[4:]]


def test_an_update_that_was_committed_is_not_made_again_when_its_driver_dies_before_the_journal(
    tmp_path: Path,
) -> None:
    def die(event: Event) -> None:
        if (event.kind, event.phase) == (EventKind.THROUGHPUT, "train"):
            raise KeyboardInterrupt

    run(tmp_path, "whole")
    config = settings(tmp_path, "cut")
    folder = RunFolder(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder, source="", observers=[die])
    assert folder.round(1).candidate.exists()
    resume_experiment(folder)
    assert steps_made(tmp_path, "cut") == steps_made(tmp_path, "whole")
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_round_that_diverges_is_abandoned_and_the_next_one_goes_on(tmp_path: Path) -> None:
    summary = run(tmp_path, "diverging", rounds=2, engine={"diverge_in_round": 1})
    _, bad, good = summary.results
    assert bad.status is RoundStatus.DIVERGED
    assert (bad.before, bad.after, good.before, good.after) == (0, 0, 0, 2)
    assert "train/loss is not finite at step 1" in bad.reason
    assert bad.metrics["train/nonfinite_steps"] == 1.0
    assert good.metrics["train/nonfinite_steps"] == 0.0
    assert bad.metrics["eval/pass@1"] == summary.results[0].metrics["eval/pass@1"]
    assert not (tmp_path / "diverging/policies/0001").exists()
    assert not (tmp_path / "diverging/rounds/0001/train/candidate").exists()


def test_rounds_that_diverge_in_a_row_end_the_run_with_the_reason(tmp_path: Path) -> None:
    limits = {"max_diverged_rounds": 1}
    summary = run(tmp_path, "stop", rounds=5, engine={"diverge_in_round": 1}, limits=limits)
    assert len(summary.results) == 2
    assert "limits.max_diverged_rounds" in summary.reason
    assert "version 0 serves" in summary.reason


def test_training_workers_that_wait_for_each_other_are_refused_where_they_would_run_in_turn(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=r"training\.workers is 2, but cluster\.backend inline"):
        settings(tmp_path, "inline", training={"workers": 2})


def test_a_stage_cannot_have_training_workers_of_its_own(tmp_path: Path) -> None:
    stages = [{"name": "first", "training": {"workers": 2}}]
    with pytest.raises(ValueError, match=r"stages\[0\]\.training\.workers cannot be set"):
        settings(tmp_path, "stages", stages=stages)
