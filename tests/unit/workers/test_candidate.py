"""New weights that cannot take their parent's place are refused before anything is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from policies.base.errors import DivergenceError, TrainingError
from workers.training.checkpoints.candidate import check_candidate, shapes_of


def model(path: Path, **changes: Any) -> Path:
    path.mkdir()
    tensors = {
        "embed": np.ones((4, 2), np.float32),
        "head": np.ones((4, 2), np.float32),
        "norm": np.ones(2, np.float32),
    }
    tensors |= {name: value for name, value in changes.items() if value is not None}
    kept = {name: value for name, value in tensors.items() if changes.get(name, 0) is not None}
    save_file(kept, path / "model.safetensors")
    return path


def test_a_candidate_like_its_parent_passes(tmp_path: Path) -> None:
    new, old = model(tmp_path / "new"), model(tmp_path / "old")
    assert (
        shapes_of(new)
        == shapes_of(old)
        == {
            "embed": ("F32", (4, 2)),
            "head": ("F32", (4, 2)),
            "norm": ("F32", (2,)),
        }
    )
    check_candidate(new, old, untrained=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    bad = np.ones((4, 2), np.float32)
    bad[3, 1] = value
    new = model(tmp_path / "new", embed=bad)
    with pytest.raises(DivergenceError, match="embed"):
        check_candidate(new, model(tmp_path / "old"), untrained=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm": np.ones(3, np.float32)}, "norm"),
        ({"norm": np.ones(2, np.float16)}, "norm"),
        ({"norm": None}, r"missing \(\['norm'\]\)"),
        ({"extra": np.ones(2, np.float32)}, r"appeared \(\['extra'\]\)"),
    ],
)
def test_other_shapes_types_or_names_than_a_published_parents_are_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    new, old = model(tmp_path / "new", **changes), model(tmp_path / "old")
    with pytest.raises(TrainingError, match=named):
        check_candidate(new, old, untrained=False)


def test_the_starting_model_may_be_of_another_type_and_hold_a_tied_head(tmp_path: Path) -> None:
    new = model(tmp_path / "new", head=None)
    old = model(tmp_path / "old", norm=np.ones(2, np.float16))
    check_candidate(new, old, untrained=True)
    bare = model(tmp_path / "bare", head=None)
    check_candidate(model(tmp_path / "tied"), bare, untrained=True, tied={"head"})
    with pytest.raises(TrainingError, match="head"):
        check_candidate(tmp_path / "tied", bare, untrained=True)


def test_a_file_that_is_cut_off_is_no_candidate(tmp_path: Path) -> None:
    new, old = model(tmp_path / "new"), model(tmp_path / "old")
    file = new / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(TrainingError, match="not a whole safetensors file"):
        check_candidate(new, old, untrained=False)
