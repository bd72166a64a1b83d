"""An optimizer step has one gradient, whatever the microbatches and the workers that it is made in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.started_process import ended_after
from tests.support.step_gradients import CASES, TOGETHER, Case, all_together, gradients
from tests.support.training_cases import write_tiny_model

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-4
"""Largest difference, as a share of the largest entry: sums in another order. z0 by microbatches is 0.01 off."""

Made = tuple[list[dict[str, Any]], list[dict[str, float]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    write_tiny_model(folder / "model")
    write_tiny_model(folder / "other", seed=1)
    return folder


@pytest.fixture(scope="module")
def whole(root: Path) -> Callable[[str], Made]:
    """A case by one worker, each step in one forward pass."""
    return cache(lambda name: gradients(CASES[name], root / "whole" / name, None))


@pytest.fixture(scope="module")
def together(root: Path) -> Path:
    """Every case by this process and another one."""
    folder = root / "two"
    folder.mkdir()
    command = [sys.executable, str(ROOT / "tests/support/step_gradients.py"), str(folder), "1", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    with ended_after(other):
        all_together(folder, rank=0, world_size=2)
        _, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors[-3000:]
    return folder


def assert_same(found: Made, expected: Made) -> None:
    steps, log = found
    assert len(steps) == len(expected[0]) > 1
    for mine, theirs in zip(steps, expected[0], strict=True):
        assert mine.keys() == theirs.keys()
        largest = max(float(g.abs().max()) for g in theirs.values())
        apart = max(float((mine[n] - theirs[n]).abs().max()) for n in theirs)
        assert apart <= TOLERANCE * largest, (apart, largest)
    assert any(bool(g.any()) for step in steps for g in step.values())
    for name in ("train/loss", "kl", "steps/kl", "train/grad_norm"):
        wanted = [row[name] for row in expected[1] if name in row]
        got = [row[name] for row in log if name in row]
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("name", "micro"),
    [(name, micro) for name, case in CASES.items() for micro in case.sizes],
)
def test_microbatches_do_not_change_the_gradient_or_the_loss(
    name: str, micro: int, whole: Callable[[str], Made], root: Path
) -> None:
    case = CASES[name]
    assert_same(gradients(case, root / "parts" / f"{name}-{micro}", micro), whole(name))


@pytest.mark.parametrize(("name", "micro"), TOGETHER)
def test_two_workers_do_not_change_the_gradient_or_the_loss(
    name: str, micro: int | None, whole: Callable[[str], Made], together: Path
) -> None:
    found: Made = torch.load(together / f"{name}-{micro}.pt", weights_only=False)
    assert_same(found, whole(name))


def test_the_examples_tell_a_reference_point_of_the_step_from_one_of_its_parts(
    whole: Callable[[str], Made], root: Path
) -> None:
    own = Case("kto", "unpaired", {"beta": 0.5}, options={"batch_size": 2})
    parts = [row["kl"] for row in gradients(own, root / "pairwise", None)[1]]
    assert all(min(parts) + 0.2 < row["kl"] < max(parts) - 0.2 for row in whole("kto")[1])


def test_fewer_partners_change_the_estimate_and_nothing_else(whole: Callable[[str], Made]) -> None:
    all_of_them, fewer = whole("kto")[1], whole("kto_fewer_partners")[1]
    assert [row["kl"] for row in fewer] != pytest.approx([row["kl"] for row in all_of_them])
    assert [row["logps/chosen"] for row in fewer] == pytest.approx(
        [row["logps/chosen"] for row in all_of_them], abs=1e-3
    )
