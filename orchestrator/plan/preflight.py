"""The preflight: what a config would run where, whether it fits, what it would cost and write.

Starts nothing, but for the processes in which verifiers judge solutions that prompts bring, a user's own are tried, and
the chat template is tried.

Every line is `ok`, `warning` or `problem`; a run with a problem is refused before anything is written.
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.config.gpu_counts import gpu_problem, left_out, with_gpu_counts
from orchestrator.config.groups import group_outlines
from orchestrator.config.number_formats import with_number_formats
from orchestrator.config.run_config import RunConfig
from orchestrator.config.secrets import withheld_secrets
from orchestrator.config.tracking_uri import sqlite_file
from orchestrator.plan.answers import plan_answers
from orchestrator.plan.dtype import plan_dtype
from orchestrator.plan.floors import below_floor
from orchestrator.plan.functions import try_functions
from orchestrator.plan.generation import plan_generation
from orchestrator.plan.inputs import plan_context, plan_model, plan_prompts, plan_test_prompts
from orchestrator.plan.judges import plan_judges
from orchestrator.plan.lines import Plan
from orchestrator.plan.losses import plan_losses, plan_routers
from orchestrator.plan.memory import memory_of_run
from orchestrator.plan.model import ModelFacts
from orchestrator.plan.network import plan_network
from orchestrator.plan.other_models import plan_other_models
from orchestrator.plan.sizes import TokenCounts, checkpoints_of_run, disk_of_run, memory_text
from orchestrator.plan.solutions import plan_solutions
from orchestrator.plan.storage import plan_storage
from orchestrator.plan.template import plan_template
from orchestrator.plan.tracking import plan_tracking
from policies.base.errors import explain
from workers.cluster.machine import Machine, existing_parent, free_disk, this_machine


def make_plan(config: RunConfig, *, run_folder: Path, elsewhere: bool = False) -> Plan:
    """Look at everything that can be looked at without starting the run.

    Args:
        config: what would run.
        run_folder: where the run would be written.
        elsewhere: the run is for another machine: cores, GPUs, memory and disk are not compared, and what
            has to be downloaded is not asked for.
    """
    plan = Plan()
    machine = this_machine()
    config = with_number_formats(config, elsewhere=elsewhere, capabilities=machine.capabilities)
    if not elsewhere and config.cluster.address is None:
        config = _with_gpus_of(config, plan, len(machine.gpu_bytes))
    if not elsewhere:
        for problem in below_floor():
            plan.add("versions", problem, "problem")
    model = plan_model(config, plan, elsewhere=elsewhere)
    train, held_out = plan_prompts(config, plan, elsewhere=elsewhere)
    plan_answers(config, plan, train, held_out)
    plan_test_prompts(config, plan, train, held_out, elsewhere=elsewhere)
    plan_solutions(
        config, plan, train, held_out, elsewhere=elsewhere or config.cluster.address is not None
    )
    try_functions(
        config, plan, train, held_out, elsewhere=elsewhere or config.cluster.address is not None
    )
    plan_template(config, plan, model, [*train, *held_out], elsewhere=elsewhere)
    plan_losses(config, plan)
    _workers(config, plan, machine, elsewhere=elsewhere or config.cluster.address is not None)
    here = None if elsewhere or config.cluster.address else machine
    plan_dtype(config, plan, here)
    counts = TokenCounts.of(config, model, train, held_out)
    if model is not None:
        plan_routers(config, plan, model)
        plan_context(config, plan, model, counts)
        plan_generation(config, plan, model)
        _memory(config, plan, model, counts, here)
    _cost(config, plan, counts)
    _writes(config, plan, run_folder)
    _disk(config, plan, run_folder, model, counts, elsewhere=elsewhere)
    plan_network(config, plan)
    _secrets(config, plan)
    plan_storage(config, plan, run_folder, elsewhere=elsewhere)
    plan_tracking(config, plan, elsewhere=elsewhere)
    plan_other_models(config, plan)
    plan_judges(config, plan, elsewhere=elsewhere)
    return plan


def _secrets(config: RunConfig, plan: Plan) -> None:
    """Refuse a component that would not see the secret that it requires."""
    for each, name in withheld_secrets(config):
        plan.add(
            "secrets",
            explain(
                "a component requires a secret that no setting of it names: workers would not see it",
                value=name,
                where=each.setting,
                fix="add it to cluster.pass_secrets, or give the component a setting with the variable's name",
            ),
            "problem",
        )


def _with_gpus_of(config: RunConfig, plan: Plan, gpus: int) -> RunConfig:
    """The config with the GPUs of this machine given out, and what is wrong with that in `plan`."""
    if config.cluster.backend == "inline":
        gpus = min(1, gpus)
    elif problem := gpu_problem(config, gpus):
        plan.add("GPUs", problem, "problem")
    if without := left_out(config, gpus):
        plan.add(
            "GPUs",
            explain(
                f"no GPU is left for {' and '.join(without)}, which would work on the CPU",
                value="auto",
                where="the resources.num_gpus of the other groups",
                fix="set rollout.resources.num_gpus=auto and training.resources.num_gpus=auto to share",
            ),
            "warning",
        )
    return with_gpu_counts(config, gpus)


def _workers(config: RunConfig, plan: Plan, machine: Machine, *, elsewhere: bool) -> None:
    asked = group_outlines(config)
    for group in asked:
        plan.add(
            f"{group.name} workers",
            f"{group.workers} x ({group.resources.num_cpus:g} CPU, {group.gpus})",
        )
    cpus = sum(g.workers * g.resources.num_cpus for g in asked)
    gpus = sum(g.workers * g.resources.gpus for g in asked)
    parallel, own = config.hosting.gpus, config.rollout.resources
    if own.num_gpus != "auto" and parallel > max(1.0, own.num_gpus):
        set_by = config.hosting.gpus_set_by
        said = (
            f"rollout.engine.{set_by} is {parallel}" if set_by else f"a copy takes {parallel} GPUs"
        )
        plan.add(
            "GPUs",
            f"{said}, but a rollout worker asks for "
            f"{own.num_gpus:g} GPU. Set by: rollout.resources.num_gpus. Fix: set it to {parallel}",
            "problem",
        )
    if elsewhere or config.cluster.backend == "inline":
        where = (
            "not compared: the run is for another machine or cluster"
            if elsewhere
            else "inline: all in the driver"
        )
        plan.add("resources", f"{cpus:g} CPUs and {gpus:g} GPUs asked for; {where}")
        return
    have = config.cluster.num_cpus or machine.cpus
    fix = ". Set by: *.workers and *.resources. Fix: lower resources.num_cpus or workers, or give cluster.address"
    plan.add(
        "CPUs",
        f"needs {cpus:g}, this machine has {have}{fix if cpus > have else ''}",
        "problem" if cpus > have else "ok",
    )
    found, short = len(machine.gpu_bytes), gpus > len(machine.gpu_bytes)
    fix = ". Set by: *.resources.num_gpus. Fix: use a CPU config, give cluster.address, or plan with --elsewhere"
    plan.add(
        "GPUs",
        f"needs {gpus:g} GPU{'s' if gpus > 1 else ''}, this machine has {found}{fix if short else ''}",
        "problem" if short else "ok",
    )


def _memory(
    config: RunConfig, plan: Plan, model: ModelFacts, counts: TokenCounts, machine: Machine | None
) -> None:
    parts = memory_of_run(config, model, counts)
    on_gpu = any(g.resources.gpus for g in group_outlines(config))
    total = sum(parts.values())
    text = " + ".join(f"{name} {memory_text(size)}" for name, size in parts.items() if size)
    text = f"about {memory_text(total)} ({text})"
    have = 0 if machine is None else sum(machine.gpu_bytes) if on_gpu else machine.memory_bytes
    if machine is None or (on_gpu and not have):
        plan.add("memory", f"{text}; not compared")
    elif total > have:
        plan.add(
            "memory",
            f"{text}, but there are {memory_text(have)}. Set by: policy.model. Fix: a smaller model, policy.adapter, "
            "training.micro_batch_size, or more memory",
            "problem",
        )
    elif not on_gpu and total > machine.available_bytes:
        plan.add(
            "memory", f"{text}; {memory_text(machine.available_bytes)} are free now", "warning"
        )
    else:
        plan.add("memory", f"{text} of {memory_text(have)}")


def _cost(config: RunConfig, plan: Plan, counts: TokenCounts) -> None:
    for stage in config.resolved_stages:
        rollout = stage.sections.rollout
        usual = rollout.samples_per_prompt + sum(m.samples for m in rollout.mixture)
        if stage.repeats_itself and usual > 1:
            plan.add(
                "a round",
                f"stage {stage.name}: 1 attempt at each prompt and not {usual}, because all attempts of "
                f"{stage.strategy.type} are the same text",
            )
    plan.add(
        "a round",
        f"{counts.samples} samples, up to {counts.sampled_tokens} tokens; update on up to "
        f"{counts.max_examples} trajectories",
    )
    plan.add(
        "a measurement",
        f"{counts.held_out_samples} samples, up to {counts.measured_tokens} tokens; "
        f"{config.rounds + 1} times",
    )


def _writes(config: RunConfig, plan: Plan, run_folder: Path) -> None:
    parent = existing_parent(run_folder)
    plan.add("writes", f"{run_folder.absolute()} (policies, samples, examples, journal)")
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        plan.add(
            "writes",
            f"{parent} cannot be written to. Set by: --runs-dir. Fix: give another --runs-dir",
            "problem",
        )
    tracked = sqlite_file(config.tracking.uri) if config.tracking.enabled else None
    if tracked is not None:
        folder = existing_parent(tracked.absolute().parent)
        writable = folder.is_dir() and os.access(folder, os.W_OK)
        plan.add(
            "writes",
            f"{tracked.absolute()} (MLflow)"
            if writable
            else f"{folder} cannot be written to. Set by: tracking.uri. Fix: another place",
            "ok" if writable else "problem",
        )


def _disk(
    config: RunConfig,
    plan: Plan,
    run_folder: Path,
    model: ModelFacts | None,
    counts: TokenCounts,
    *,
    elsewhere: bool,
) -> None:
    per_round, total = disk_of_run(config, model, counts)
    checkpoints, sure = checkpoints_of_run(config, model, counts)
    text = f"about {memory_text(per_round)} a round, {memory_text(total)} in all"
    if checkpoints:
        when = "" if sure else " if an update takes longer than training.checkpoint_seconds"
        text += f", and up to {memory_text(checkpoints)} for checkpoints meanwhile{when}"
    if elsewhere:
        plan.add("disk", f"{text}; not compared")
        return
    free = free_disk(run_folder)
    needed = total + (checkpoints if sure else 0)
    fix = "" if total + checkpoints <= free else ". Set by: --runs-dir. Fix: make room, "
    if fix:
        fix += "or give another --runs-dir"
    if fix and total <= free:
        fix += ", or turn training.checkpoint_steps and training.checkpoint_seconds off"
    plan.add(
        "disk",
        f"{text}; {memory_text(free)} free{fix}",
        "problem" if needed > free else "warning" if fix else "ok",
    )
