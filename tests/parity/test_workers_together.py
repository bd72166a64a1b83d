"""Two training workers that share each batch compute what one worker computes on the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from policies.base.errors import WaitTimeoutError
from tests.support.parallel_update import CASES, all_cases, update
from tests.support.started_process import ended_after
from tests.support.training_cases import log_of, weights_of, write_tiny_model
from workers.training.distributed.process_group import LOOPBACK, joined, listen
from workers.training.engine import ProcessGroup

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
"""Of losses and weights: sums in another order. Measured: weights 6e-8 apart, which the updates moved by 6e-4."""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, made by this process and another one on the loopback device."""
    root = tmp_path_factory.mktemp("together")
    write_tiny_model(root / "model")
    write_tiny_model(root / "other", seed=1)
    folder = root / "two"
    folder.mkdir()
    command = [
        sys.executable,
        str(ROOT / "tests/support/parallel_update.py"),
        str(folder),
        "1",
        "2",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    with ended_after(other):
        all_cases(folder, rank=0, world_size=2)
        _, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors[-3000:]
    return root


@pytest.mark.parametrize("name", CASES)
def test_two_workers_make_the_losses_and_the_weights_of_one(name: str, together: Path) -> None:
    alone = update(name, together / "one", None)
    shared = update_paths(together / "two" / name)
    one, two = log_of(alone), shared["log"]
    assert (
        [row["step"] for row in two] == [row["step"] for row in one] == list(range(1, len(one) + 1))
    )
    for key in ("train/loss", "train/grad_norm", "train/learning_rate", "kl", "steps/kl"):
        assert [row.get(key) for row in two] == pytest.approx(
            [row.get(key) for row in one], abs=TOLERANCE
        ), key
    first, second = weights_of(alone.output_dir), weights_of(shared["output"])
    start = weights_of(together / "model")
    apart = max(float((first[n] - second[n]).abs().max()) for n in first)
    moved = max(float((first[n] - start[n]).abs().max()) for n in first)
    assert first.keys() == second.keys()
    assert apart < TOLERANCE < moved / 10, (apart, moved)


def update_paths(folder: Path) -> dict[str, Any]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return {"output": folder / "new", "log": [json.loads(line) for line in lines]}


def test_a_worker_that_never_comes_ends_the_wait_with_its_name_and_the_setting() -> None:
    port = listen(LOOPBACK)
    place = ProcessGroup(address=LOOPBACK, port=port, rank=0, world_size=2)
    with (
        pytest.raises(
            WaitTimeoutError, match=r"worker 0 of 2 .* did not all come.*group_timeout_seconds"
        ),
        joined(place, timeout_seconds=0.5, device="cpu"),
    ):
        raise AssertionError("nobody came")
