"""What `num_gpus: auto` stands for, and that a training process never sees more than one GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.gpu_counts import check_gpus, gpu_problem, left_out, with_gpu_counts
from orchestrator.config.number_formats import with_number_formats
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.assembly import _cluster
from orchestrator.plan.preflight import make_plan
from policies.base.errors import ConfigurationError, TrainingError
from policies.storage.fake_model import write_fake_model
from tests.support.fake_runs import fake_config, fake_tree
from tests.support.training_cases import make_engine, make_job, make_loss, pairs, version
from workers.cluster import gpus
from workers.cluster.inline import InlineCluster
from workers.cluster.machine import Machine
from workers.cluster.seam import GroupSpec
from workers.training import local_model


def config(root: Path, **changes: Any) -> RunConfig:
    """Engines that compute with a model: a vLLM sampler and TRL's trainer, on Ray."""
    rollout = {"engine": {"type": "vllm"}} | changes.pop("rollout", {})
    training = {"engine": {"type": "trl"}} | changes.pop("training", {})
    cluster = {"backend": "ray"}
    return fake_config(
        root, **({"rollout": rollout, "training": training, "cluster": cluster} | changes)
    )


def given(of: RunConfig, count: float) -> tuple[float, float, float]:
    """GPUs of a rollout, a training and a verify worker."""
    resolved = with_gpu_counts(of, count)
    sections = (resolved.rollout, resolved.training, resolved.verify)
    return tuple(section.resources.gpus for section in sections)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("samplers", "count", "each"),
    [
        (1, 0, (0.0, 0.0)),
        (1, 1, (0.5, 0.5)),
        (1, 2, (1.0, 1.0)),
        (1, 8, (1.0, 1.0)),
        (3, 2, (0.5, 0.5)),
        (4, 2, (0.3333, 0.3333)),
        (7, 8, (1.0, 1.0)),
    ],
)
def test_auto_gives_a_gpu_to_each_process_and_shares_evenly_where_there_are_fewer(
    tmp_path: Path, samplers: int, count: int, each: tuple[float, float]
) -> None:
    of = config(tmp_path, rollout={"workers": samplers})
    assert of.training.resources.num_gpus == "auto"  # the default
    assert given(of, count) == (*each, 0.0)  # verifiers compute with no model


def test_auto_takes_what_groups_with_a_number_leave_and_says_when_nothing_is_left(
    tmp_path: Path,
) -> None:
    half = config(tmp_path, rollout={"resources": {"num_gpus": 0.5}})
    assert given(half, 1) == (0.5, 0.5, 0.0)
    assert given(half, 2) == (0.5, 1.0, 0.0)
    all_of_it = config(tmp_path, rollout={"resources": {"num_gpus": 1}})
    assert given(all_of_it, 1) == (1.0, 0.0, 0.0)
    assert left_out(all_of_it, 1) == ["train"]
    assert left_out(half, 1) == []


def test_an_engine_over_several_gpus_gets_them_and_a_scripted_one_gets_none(tmp_path: Path) -> None:
    wide = {"engine": {"type": "vllm", "tensor_parallel_size": 2}}
    assert given(config(tmp_path, rollout=wide), 4) == (2.0, 1.0, 0.0)
    assert given(fake_config(tmp_path), 4) == (0.0, 0.0, 0.0)


def test_several_training_processes_never_share_a_gpu(tmp_path: Path) -> None:
    two = config(tmp_path, training={"workers": 2})
    assert given(two, 3) == (1.0, 1.0, 0.0)
    assert gpu_problem(two, 3) is None
    assert gpu_problem(two, 0) is None  # on the CPU they may be as many as they like
    with pytest.raises(ConfigurationError, match=r"set training\.workers=1"):
        check_gpus(two, 2)
    assert gpu_problem(config(tmp_path, training={"workers": 1}), 2) is None  # the remedy


@pytest.mark.parametrize("several", [2, 8, 2.5])
def test_a_training_process_with_several_gpus_is_refused_by_the_config(
    tmp_path: Path, several: float
) -> None:
    training = {"engine": {"type": "trl"}, "resources": {"num_gpus": several}}
    with pytest.raises(ValueError, match="num_gpus") as refused:
        RunConfig.model_validate(fake_tree(tmp_path, training=training, cluster={"backend": "ray"}))
    if several == 2.5:
        assert "use 2 or 3" in str(refused.value)
        return
    assert f"num_gpus=1 and training.workers={several}" in str(refused.value)
    config(tmp_path, training={"resources": {"num_gpus": 1}, "workers": several})  # the remedy


def test_inline_refuses_several_gpus_with_a_remedy_that_inline_takes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_gpus=1(?! and)"):
        fake_config(tmp_path, training={"resources": {"num_gpus": 2}})
    fake_config(tmp_path, training={"resources": {"num_gpus": 1}})


def test_true_is_no_number_of_gpus(tmp_path: Path) -> None:
    from orchestrator.config.errors import booleans_as_numbers

    tree = fake_tree(tmp_path, training={"resources": {"num_gpus": True}})
    assert [p.path[-1] for p in booleans_as_numbers(RunConfig, tree, ())] == ["num_gpus"]


@pytest.mark.parametrize(
    ("before", "allowed", "shown"),
    [(None, 1, "0"), ("2,3", 1, "2"), ("GPU-a,GPU-b", 1, "GPU-a"), ("", 1, ""), (None, 0, ""),
     ("1", 0, "")],
)  # fmt: skip
def test_the_inline_cluster_shows_its_process_one_gpu_or_none_and_puts_it_back(
    monkeypatch: pytest.MonkeyPatch, before: str | None, allowed: int, shown: str
) -> None:
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if before is not None:
        monkeypatch.setenv(gpus.VISIBLE, before)
    cluster = InlineCluster(gpus=8 * allowed)
    seen = cluster.start_group(GroupSpec("probe", _Seer)).submit("sees")
    assert (cluster.gpus(), seen.value) == (allowed, shown)
    cluster.close()
    assert os.environ.get(gpus.VISIBLE) == before


class _Seer:
    def sees(self) -> str | None:
        return os.environ.get(gpus.VISIBLE)


@pytest.mark.parametrize(("number", "shown"), [("auto", "0"), (0.5, "0"), (0, "")])
def test_a_run_without_ray_shows_its_trainer_one_of_four_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float | str, shown: str
) -> None:
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setattr("orchestrator.driver.assembly.usable_gpus", lambda: [(1 << 34, 9.0)] * 4)
    of = fake_config(
        tmp_path, training={"engine": {"type": "trl"}, "resources": {"num_gpus": number}}
    )
    unused: Any = None
    cluster = _cluster(of, unused, unused, epoch=0, events=unused, shared=None)
    assert os.environ[gpus.VISIBLE] == shown
    cluster.close()
    assert gpus.VISIBLE not in os.environ


def test_a_trainer_that_sees_several_gpus_stops_before_it_loads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_model, "visible_gpus", lambda: 2)
    engine = make_engine("trl", make_loss("dpo"))
    job = make_job(version(write_fake_model(tmp_path / "model", skill=0.3)), tmp_path)
    with pytest.raises(TrainingError, match=r"got '2 GPUs'.*training\.resources\.num_gpus=1"):
        engine.update(job, pairs())
    assert not (tmp_path / "new").exists()


def test_the_plan_shares_one_gpu_and_refuses_two_trainers_on_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(count: int, **changes: Any) -> str:
        machine = Machine(16, 1 << 37, 1 << 37, (1 << 36,) * count)
        monkeypatch.setattr("orchestrator.plan.preflight.this_machine", lambda: machine)
        made = make_plan(config(tmp_path, **changes), run_folder=tmp_path / "run")
        return "\n".join(f"{line.what}: {line.found}" for line in made.lines)

    assert "needs 1 GPU, this machine has 1" in plan(1)
    assert "needs 2 GPUs, this machine has 8" in plan(8)
    assert "2 training processes need a GPU each" in plan(2, training={"workers": 2})
    assert "no GPU is left for train" in plan(1, rollout={"resources": {"num_gpus": 1}})


def test_looking_for_gpus_loads_no_torch() -> None:
    import subprocess

    code = (
        "import sys, workers.cluster.gpus as g; g.usable_gpus(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("capabilities", "formats"),
    [
        ((7.5,), ("float16", "fp32")),
        ((8.0,), ("bfloat16", "bf16")),
        ((0.0,), ("bfloat16", "bf16")),
        ((9.0, 7.5), ("float16", "fp32")),
    ],
)
def test_a_newcomer_with_an_old_gpu_gets_formats_that_it_computes_in(
    tmp_path: Path, capabilities: tuple[float, ...], formats: tuple[str, str]
) -> None:
    chosen = with_number_formats(config(tmp_path), capabilities=capabilities)
    assert (chosen.policy.dtype, chosen.training.precision) == formats
