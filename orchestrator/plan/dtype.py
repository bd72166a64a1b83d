"""The part of the preflight that compares number formats with the devices that would compute in them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.number_formats import BF16_CAPABILITY, cpu_multiplies_bf16
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import ResourceSettings
from orchestrator.plan.lines import Plan
from policies.base.component_walk import stated_requirements
from policies.base.errors import explain
from workers.cluster.machine import Machine


def plan_dtype(config: RunConfig, plan: Plan, machine: Machine | None) -> None:
    """Add a problem for every number format that its device cannot work in.

    Args:
        config: what would run.
        plan: where the lines go.
        machine: where it would run; None for another machine, whose GPUs are not known.
    """
    wanted = list(_wanted(config))
    if wanted:
        plan.add("number formats", ", ".join(f"{where} {dtype}" for where, dtype, _, _ in wanted))
    for where, dtype, resources, remedy in wanted:
        device = _device(config, resources, machine)
        if device == "cpu" and dtype in ("bfloat16", "bf16") and machine is not None:
            _warn_of_slow_bf16(where, dtype, plan)
        if device == "cpu" and dtype == "float16":
            plan.add(
                "number format",
                explain(
                    "a CPU cannot be used with float16: it is slower there than float32, and overflows at 65504",
                    value=f"{dtype} on a CPU",
                    where=where,
                    fix="use auto, bfloat16 or float32, or give the group a GPU (resources.num_gpus)",
                ),
                "problem",
            )
        elif device == "gpu" and dtype in ("bfloat16", "bf16") and machine is not None:
            old = min(machine.gpu_capabilities, default=BF16_CAPABILITY)
            if old < BF16_CAPABILITY:
                plan.add(
                    "number format",
                    explain(
                        f"a GPU of this machine does not compute in bfloat16: its compute capability is {old:g}, "
                        f"and {BF16_CAPABILITY:g} is needed",
                        value=dtype,
                        where=where,
                        fix=f"use {remedy}, or a newer GPU",
                    ),
                    "problem",
                )


def _warn_of_slow_bf16(where: str, dtype: str, plan: Plan) -> None:
    if not cpu_multiplies_bf16():
        plan.add(
            "number format",
            explain(
                "this machine's processor has no instructions for bfloat16: it is several times slower than float32",
                value=dtype,
                where=where,
                fix="use auto, which takes what is fast here",
            ),
            "warning",
        )


def _wanted(config: RunConfig) -> Iterator[tuple[str, str, ResourceSettings, str]]:
    """Each format with where it is set, the resources of a worker that computes in it, and what else it could be."""
    if config.hosting.gpus:
        sampler = config.rollout.resources
        yield "policy.dtype", config.policy.dtype, sampler, "float16 or float32"
    for index, stage in enumerate(config.resolved_stages):
        trainer = stated_requirements(stage.training.engine).hosting
        if trainer is not None and trainer.gpus:
            at = f"stages[{index}].training.precision" if config.stages else "training.precision"
            yield at, stage.training.precision, config.training.resources, "fp32"
    for judge in config.components_of("judge"):
        for own in (m.dtype for m in judge.needs.models if m.hosting is not None and m.gpus):
            at = f"{judge.setting}.dtype" if own else "policy.dtype (the judge's too)"
            gpus = config.verify.judge_resources
            yield at, own or config.policy.dtype, gpus, "float16 or float32"


def _device(config: RunConfig, resources: ResourceSettings, machine: Machine | None) -> str:
    """`gpu`, `cpu`, or nothing where it cannot be known from here."""
    if resources.gpus:
        return "gpu"
    if machine is None and resources.num_gpus == "auto":
        return ""
    if config.cluster.backend == "ray":
        return "cpu"  # GPUs are hidden from a worker that asked for none
    if machine is None:
        return ""
    return "gpu" if machine.gpu_bytes else "cpu"
