"""Models of samplers and judges compute with their share of the cores, although Ray starts actors with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from policies.storage.fake_model import write_fake_model
from workers.cluster.compute_threads import cores_in, set_threads

ROOT = Path(__file__).parents[3]
CORES = len(os.sched_getaffinity(0))
WORKERS = {
    "rollout": (
        "from workers.rollout.engine import ENGINES; from workers.rollout.worker import RolloutWorker;"
        "from tests.support.training_cases import version; from pathlib import Path;"
        "RolloutWorker(ENGINES.parse('fake'), [], policy=version(Path({model!r})), dtype='float32', seed=0{more})"
    ),
    "judge": (
        "from workers.judge.judge import BackendContext; from workers.judge.worker import JudgeWorker;"
        "JudgeWorker([], BackendContext(policy_version=int, model_version=str){more})"
    ),
    "train": "from workers.training.worker import TrainWorker; TrainWorker([], None)",
}


def threads_of_torch(worker: str, model: str, more: str = "") -> int:
    """What torch computes with after the worker was built, in a process that Ray would have started."""
    code = WORKERS[worker].format(model=model, more=more) + "; import torch"
    found = subprocess.run(
        [sys.executable, "-c", code + "; print(torch.get_num_threads())"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=200,
    )
    return int(found.stdout.split()[-1])


@pytest.mark.parametrize("worker", WORKERS)
def test_torch_computes_with_every_core_that_the_worker_may_use(
    worker: str, tmp_path: Path
) -> None:
    assert threads_of_torch(worker, str(write_fake_model(tmp_path / "m", skill=0.3))) == CORES


def test_the_setting_is_kept_to(tmp_path: Path) -> None:
    model = str(write_fake_model(tmp_path / "m", skill=0.3))
    assert threads_of_torch("rollout", model, ", threads=1") == 1


def test_workers_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert [set_threads(shared_by=n) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert set_threads(5, shared_by=4) == 5
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_lists_of_cores_are_read_as_taskset_writes_them() -> None:
    assert cores_in("0-3,8") == {0, 1, 2, 3, 8}
    assert cores_in("5") == {5}
    for wrong in ("", "a", "3-1", "1,,2"):
        with pytest.raises(ValueError, match=r"."):
            cores_in(wrong)
