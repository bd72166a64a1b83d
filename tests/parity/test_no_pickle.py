"""What a real update leaves behind, with its optimizer state and checkpoints, is safetensors and JSON."""

from __future__ import annotations

from pathlib import Path

from tests.support.artefacts import files_of, pickles_in
from tests.support.training_cases import (
    make_engine,
    make_job,
    make_loss,
    pairs,
    version,
    write_tiny_model,
)


def test_no_file_of_a_trained_update_is_a_pickle(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    engine = make_engine("trl", make_loss("dpo"), optimizer="carry", checkpoint_steps=1)
    state, checkpoints = tmp_path / "optimizer", tmp_path / "checkpoints"
    job = make_job(
        version(model), tmp_path, optimizer_output=str(state), checkpoint_dir=str(checkpoints)
    )
    engine.update(job, pairs())
    assert any(p.suffix == ".safetensors" for p in files_of(tmp_path / "new"))
    assert state.exists()
    assert files_of(checkpoints) != []
    assert pickles_in(tmp_path) == []
