"""`auto` becomes the number format that is fast on the device, before a run begins, and is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import number_formats
from orchestrator.config.files import load_config
from orchestrator.config.number_formats import (
    cpu_multiplies_bf16,
    with_formats_of,
    with_number_formats,
)
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import run_experiment
from orchestrator.plan.dtype import plan_dtype
from orchestrator.plan.lines import Plan
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.naming import same_run
from orchestrator.runs.state import read_config
from workers.cluster.machine import this_machine

ON_GPU = ("rollout.resources.num_gpus=0.5", "training.resources.num_gpus=0.5")


def config(*overrides: str) -> RunConfig:
    return load_config("quickstart", overrides).config


def formats(found: RunConfig) -> tuple[str, str]:
    return found.policy.dtype, found.stage_of(1).training.precision


@pytest.fixture(params=[True, False], ids=["bf16-cpu", "avx2-cpu"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    has: bool = request.param
    monkeypatch.setattr(number_formats, "cpu_multiplies_bf16", lambda: has)
    monkeypatch.setattr("orchestrator.plan.dtype.cpu_multiplies_bf16", lambda: has)
    return has


@pytest.mark.parametrize(
    ("cpu_info", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 vaes\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_tile amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 vaes fsrm\n", False),
        ("processor\t: 0\nbugs\t\t: bf16\nflags\t\t: fpu avx512f\n", False),
        ("", False),
    ],
)
def test_only_a_processor_that_lists_the_instructions_multiplies_bfloat16(
    tmp_path: Path, cpu_info: str, has: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(cpu_info)
    assert cpu_multiplies_bf16(tmp_path / "cpuinfo") is has
    assert cpu_multiplies_bf16(tmp_path / "missing") is False


def test_auto_is_what_the_processor_is_fast_in(has_bf16: bool) -> None:
    assert formats(with_number_formats(config())) == (
        ("bfloat16", "bf16") if has_bf16 else ("float32", "fp32")
    )


def test_auto_is_bfloat16_on_gpus_and_for_other_machines(has_bf16: bool) -> None:
    assert formats(with_number_formats(config(*ON_GPU))) == ("bfloat16", "bf16")
    assert formats(with_number_formats(config(), elsewhere=True)) == ("bfloat16", "bf16")


def test_a_stage_that_says_auto_is_resolved_although_its_stages_were_looked_at_before(
    has_bf16: bool,
) -> None:
    staged = config("stages=[{name: a, training: {precision: auto}}]", "training.precision=fp32")
    assert staged.stage_of(1).training.precision == "auto"
    wanted = "bf16" if has_bf16 else "fp32"
    assert with_number_formats(staged).stage_of(1).training.precision == wanted


def said_of(asked: RunConfig) -> list[str]:
    """Verdicts of the plan on number formats."""
    plan = Plan()
    plan_dtype(asked, plan, this_machine())
    return [line.verdict for line in plan.lines if line.what == "number format"]


def test_what_is_set_by_hand_stays_and_what_is_slow_is_named(has_bf16: bool) -> None:
    by_hand = config("policy.dtype=bfloat16", "training.precision=bf16")
    assert formats(with_number_formats(by_hand)) == ("bfloat16", "bf16")
    assert said_of(by_hand) == ([] if has_bf16 else ["warning"] * 2)
    remedied = config("policy.dtype=auto", "training.precision=auto")
    assert said_of(with_number_formats(remedied)) == []


def test_a_run_records_what_auto_was_and_goes_on_with_it_elsewhere(
    has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_config(
        "fake-smoke", ["policy.dtype=auto", "rounds=1", "tracking.enabled=false"]
    ).config
    folder = RunFolder(tmp_path / "smoke")
    run_experiment(asked, folder, source="")
    recorded = read_config(folder)
    wanted = ("bfloat16", "bf16") if has_bf16 else ("float32", "fp32")
    assert (recorded["policy"]["dtype"], recorded["training"]["precision"]) == wanted
    monkeypatch.setattr(number_formats, "cpu_multiplies_bf16", lambda: not has_bf16)
    assert formats(with_formats_of(asked, recorded)) == wanted
    assert same_run(tmp_path, "smoke", asked) is not None
