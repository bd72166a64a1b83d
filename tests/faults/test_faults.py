"""The fault matrix as tests: break, resume, prove whole, compare with the undisturbed run.

The short form takes one seeded moment per row (PAWL_FAULT_SEED chooses others), the long one every phase of every row
with several seeds.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.fault import Fault
from tests.faults.play import Stage, can_run, play
from tests.faults.scene import ROOT
from tests.faults.table import FAULTS

SEED = int(os.environ.get("PAWL_FAULT_SEED", "0"))
LONG_SEEDS = range(SEED, SEED + 3)


def short_cases() -> list[tuple[Fault, str]]:
    """One phase per row of the short form, by seed."""
    chosen = random.Random(SEED)
    return [(fault, chosen.choice(fault.phases)) for fault in FAULTS if fault.short]


SHORT = short_cases()
LONG = [(fault, phase, seed) for fault in FAULTS for phase in fault.phases for seed in LONG_SEEDS]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("peace"), stack)


@pytest.mark.parametrize(("fault", "phase"), SHORT, ids=[f"{f.name}-{phase}" for f, phase in SHORT])
def test_a_broken_run_ends_as_an_undisturbed_one(
    stage: Stage, tmp_path: Path, fault: Fault, phase: str
) -> None:
    if not can_run(fault):
        pytest.skip(f"{fault.needs} is not possible here")
    scene = stage.scene(tmp_path, fault, SEED)
    play(scene, fault, phase)
    assert scene.num_fired > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "phase", "seed"), LONG, ids=[f"{f.name}-{phase}-{seed}" for f, phase, seed in LONG]
)
def test_the_same_holds_in_every_phase_and_for_other_moments(
    stage: Stage, tmp_path: Path, fault: Fault, phase: str, seed: int
) -> None:
    if not can_run(fault):
        pytest.skip(f"{fault.needs} is not possible here")
    scene = stage.scene(tmp_path, fault, seed)
    play(scene, fault, phase)
    assert scene.num_fired > 0


def test_the_table_has_a_row_for_every_kind_of_fault() -> None:
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_page_on_faults_names_every_row_and_nothing_else() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r'"([^"]+)"', page))
    assert named == {fault.name for fault in FAULTS}
    in_ci = set(re.findall(r'"([^"]+)"\*', page))
    assert in_ci == {fault.name for fault in FAULTS if fault.short}
    files = set(re.findall(r"`((?:tests|scripts)/[^` ]+)", page))
    assert len(files) > 15
    assert [name for name in files if not (ROOT / name).exists()] == []
