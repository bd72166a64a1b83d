"""Files of tensors that a library writes: what the disk refuses is worth another try, a part is never vouched for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.base.errors import StorageError, TrainingError, boundary
from policies.storage.fake_model import write_fake_model
from tests.support.full_disk import largest_file
from workers.training.checkpoints.optimizer_state import save_moments
from workers.training.checkpoints.store import Checkpoints
from workers.training.checkpoints.tensor_files import check_whole, refusals_told, save_tensors
from workers.training.checkpoints.trained_state import TrainedState
from workers.training.checkpoints.weights import candidate_directory
from workers.training.engine import TrainingOptions


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(str(folder / "checkpoints"), "inputs", options=TrainingOptions())


def fill_candidate(target: Path, write: Callable[[Path], object]) -> None:
    with candidate_directory(target) as folder:
        assert folder is not None
        write(folder)


def test_what_the_disk_refuses_safetensors_is_exit_75_and_leaves_nothing(tmp_path: Path) -> None:
    import torch

    tensors = {"a": torch.zeros(5000)}
    writes: list[Callable[[], object]] = [
        lambda: save_tensors(tensors, tmp_path / "a.safetensors"),
        lambda: save_moments(tensors, tmp_path / "moments.safetensors"),
        lambda: checkpoints(tmp_path).save(2, {"log": []}, TrainedState(tensors, tensors).write),
    ]
    for write in writes:
        with largest_file(3000), pytest.raises(StorageError, match=r"larger than.*Fix: raise"):
            write()
    assert not list(tmp_path.glob("*.safetensors"))
    assert checkpoints(tmp_path).newest() is None
    saved = checkpoints(tmp_path).save(2, {"log": []}, TrainedState(tensors, tensors).write)
    newest = checkpoints(tmp_path).newest()
    assert newest is not None
    assert (newest.path, newest.step) == (saved.path, 2)


def test_a_part_of_a_file_of_tensors_is_noticed_before_anything_vouches_for_it(
    tmp_path: Path,
) -> None:
    write_fake_model(tmp_path / "model", skill=0.3)
    whole = (tmp_path / "model/model.safetensors").read_bytes()
    check_whole(tmp_path / "model/model.safetensors")
    for size in (0, 4, 8, 20, len(whole) // 2, len(whole) - 1, len(whole) + 1):

        def write(folder: Path, size: int = size) -> None:
            folder.joinpath("model.safetensors").write_bytes((whole + b"\0")[:size])

        with pytest.raises(StorageError, match=r"not written whole.*Fix: check the disk"):
            checkpoints(tmp_path).save(2, {"log": []}, write)
        with pytest.raises(StorageError, match="not written whole"):
            fill_candidate(tmp_path / "candidate", write)
        assert not (tmp_path / "candidate").exists()
    assert checkpoints(tmp_path).newest() is None


def test_a_disk_error_inside_an_update_is_not_a_failed_update(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="the disk is full"),
        boundary(TrainingError, "the update failed"),
        refusals_told(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(TrainingError, match="the update failed"),
        boundary(TrainingError, "the update failed"),
        refusals_told(tmp_path),
    ):
        raise IsADirectoryError(errno.EISDIR, "x")
