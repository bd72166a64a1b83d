"""The number formats that `auto` stands for, chosen for the device before a run begins and written into its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.gpu_counts import with_gpu_counts
from orchestrator.config.run_config import RunConfig
from orchestrator.config.stages import StageSettings
from workers.cluster.gpus import usable_gpus

BF16_CAPABILITY = 8.0
"""CUDA compute capability (Ampere) from which a GPU computes in bfloat16; vLLM refuses it below."""
_CPU_INFO = Path("/proc/cpuinfo")
_MULTIPLIES_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""Names that Linux gives to instructions which multiply bfloat16: x86 (`flags`) and Arm (`Features`)."""


def with_number_formats(
    config: RunConfig, *, elsewhere: bool = False, capabilities: Sequence[float] | None = None
) -> RunConfig:
    """Replace every `auto` by the format that is fast on the device which will compute in it.

    A group with GPUs, or on another machine, works in bfloat16; on a GPU that cannot (before Ampere), a sampler takes
    float16 and the trainer fp32. On a CPU that has no instructions for it a product of matrices in bfloat16 takes
    several times as long as in float32 (seven times on an AVX2 machine), so float32 is taken there. Workers of a
    cluster are taken to be like this machine.

    Args:
        config: as it was loaded.
        elsewhere: the run is for another machine, whose processor is not known.
        capabilities: CUDA compute capability of each GPU of this machine, 0.0 where it is not known; None looks.
    """
    if elsewhere:
        return _with_formats(config, "bfloat16", "bf16")
    if capabilities is None:
        capabilities = [capability for _, capability in usable_gpus()]
    asked = with_gpu_counts(config, len(capabilities))
    old = min((c for c in capabilities if c), default=BF16_CAPABILITY) < BF16_CAPABILITY
    on_cpu = ("bfloat16", "bf16") if cpu_multiplies_bf16() else ("float32", "fp32")
    on_gpu = ("float16", "fp32") if old else ("bfloat16", "bf16")
    sampler = on_gpu if asked.rollout.resources.gpus else on_cpu
    trainer = on_gpu if asked.training.resources.gpus else on_cpu
    return _with_formats(config, sampler[0], trainer[1])


def with_formats_of(config: RunConfig, recorded: Mapping[str, Any]) -> RunConfig:
    """Replace every `auto` by what a run that has begun chose: `recorded` is the config in its folder."""
    policy, training = recorded.get("policy"), recorded.get("training")
    dtype = policy.get("dtype") if isinstance(policy, Mapping) else None
    precision = training.get("precision") if isinstance(training, Mapping) else None
    return _with_formats(config, dtype or "bfloat16", precision or "bf16")


def cpu_multiplies_bf16(cpu_info: Path = _CPU_INFO) -> bool:
    """Tell whether this machine's processor multiplies bfloat16 in hardware; False where Linux does not say."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, names = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _MULTIPLIES_BF16.isdisjoint(names.split())
    return False


def _with_formats(config: RunConfig, dtype: str, precision: str) -> RunConfig:
    changes: dict[str, Any] = {}
    if config.policy.dtype == "auto":
        changes["policy"] = config.policy.model_copy(update={"dtype": dtype})
    if config.training.precision == "auto":
        changes["training"] = config.training.model_copy(update={"precision": precision})
    if any(stage.training.get("precision") == "auto" for stage in config.stages):
        changes["stages"] = tuple(_stage(stage, precision) for stage in config.stages)
    if not changes:
        return config
    copied = config.model_copy(update=changes)
    # A copy takes along what was computed from the old values.
    vars(copied).pop("resolved_stages", None)
    return copied


def _stage(stage: StageSettings, precision: str) -> StageSettings:
    if stage.training.get("precision") != "auto":
        return stage
    return stage.model_copy(update={"training": {**stage.training, "precision": precision}})
