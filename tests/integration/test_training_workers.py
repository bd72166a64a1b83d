"""Training workers on real Ray that are killed in the middle of an update: it goes on, and nothing shows."""

from __future__ import annotations

from pathlib import Path

from tests.unit.orchestrator.test_updates_survive import left, run, steps_made


def test_a_group_whose_worker_is_killed_twice_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, "whole")
    training = {"batch_size": 2, "checkpoint_steps": 2, "epochs": 2, "workers": 2}
    engine = {"die_at": (3, 5), "how": "kill"}
    run(tmp_path, "killed", engine=engine, training=training, cluster={"num_cpus": 2})
    assert len(list((tmp_path / "killed-notes").glob("death-*"))) == 2, "the faults must have hit"
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    assert steps_made(tmp_path, "killed") == steps_made(tmp_path, "whole"), "no step twice"
