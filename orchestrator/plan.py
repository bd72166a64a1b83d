"""The preflight: what a config would run where, whether it fits, what it would cost and write. Starts nothing.

Every line is `ok`, `warning` or `problem`; a run with a problem is refused before anything is written.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.config import RunConfig
from orchestrator.model_files import resolve_model
from orchestrator.plan_machine import Machine, existing_parent, free_disk, this_machine
from orchestrator.plan_model import ModelFacts, read_model
from orchestrator.plan_sizes import TokenCounts, disk_of_run, memory_of_run, memory_text
from orchestrator.prompts.overlap import overlapping
from orchestrator.tracking_uri import redact, sqlite_file
from policies.component import Component, create
from policies.errors import ConfigurationError, InputError, PawlError
from policies.records import Prompt
from workers.verify.judge import Judge

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class PlanLine:
    """One thing that was looked at."""

    what: str
    found: str
    verdict: Verdict = "ok"


@dataclass
class Plan:
    """All that the preflight found."""

    lines: list[PlanLine] = field(default_factory=list)

    def add(self, what: str, found: str, verdict: Verdict = "ok") -> None:
        """Append a line."""
        self.lines.append(PlanLine(what, found, verdict))

    def of(self, verdict: Verdict) -> list[PlanLine]:
        """The lines with this verdict."""
        return [line for line in self.lines if line.verdict == verdict]

    @property
    def fits(self) -> bool:
        return not self.of("problem")

    def to_json(self) -> dict[str, Any]:
        """The plan for scripts."""
        return {"fits": self.fits, "lines": [asdict(line) for line in self.lines]}


@dataclass(frozen=True)
class Group:
    """Workers of one kind."""

    name: str
    workers: int
    num_cpus: float
    num_gpus: float


def make_plan(config: RunConfig, *, run_folder: Path, elsewhere: bool = False) -> Plan:
    """Look at everything that can be looked at without starting anything.

    Args:
        config: what would run.
        run_folder: where the run would be written.
        elsewhere: the run is for another machine: cores, GPUs, memory and disk are not compared, and what
            has to be downloaded is not asked for.
    """
    plan = Plan()
    machine = this_machine()
    model = _model(config, plan, elsewhere=elsewhere)
    train, held_out = _prompts(config, plan, elsewhere=elsewhere)
    _workers(config, plan, machine, elsewhere=elsewhere or config.cluster.address is not None)
    counts = TokenCounts.of(config, model, train, held_out)
    if model is not None:
        _context(config, plan, model, counts)
        _memory(config, plan, model, counts, None if elsewhere or config.cluster.address else machine)
    _cost(config, plan, counts)
    _writes(config, plan, run_folder, disk_of_run(config, model, counts), elsewhere=elsewhere)
    _network(config, plan)
    return plan


def refuse_what_cannot_run(plan: Plan) -> None:
    """Stop before anything is written.

    Raises:
        ConfigurationError: the plan has problems; all of them are listed.
    """
    problems = plan.of("problem")
    if problems:
        raise ConfigurationError("\n".join(f"{p.what}: {p.found}" for p in problems))


def is_fake(config: RunConfig) -> bool:
    """Whether the scripted engine samples: its model has neither layers nor a tokenizer."""
    return config.rollout.engine.type == "fake"


def _model(config: RunConfig, plan: Plan, *, elsewhere: bool) -> ModelFacts | None:
    try:
        path = resolve_model(config.policy, download=False)
        facts = read_model(path)
    except InputError as error:
        hub = _is_hub_id(config.policy.model)
        offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "YES", "yes", "ON", "on")
        if hub and (elsewhere or not offline):
            plan.add("model", f"{config.policy.model} is not on this machine: it would be downloaded; its size and context are not checked", "warning")
        elif hub:
            plan.add("model", f"{config.policy.model} is not on this machine and HF_HUB_OFFLINE is set. Set by: policy.model. Fix: give a local directory, or download it first", "problem")
        else:
            plan.add("model", str(error), "problem")
        return None
    plan.add("model", f"{path} ({facts.parameters / 1e6:.1f} M parameters, {memory_text(facts.weight_bytes)})")
    for problem in facts.problems + ([] if is_fake(config) else _model_problems(config, facts)):
        plan.add("model", problem, "problem")
    return facts


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _model_problems(config: RunConfig, model: ModelFacts) -> list[str]:
    found: list[str] = []
    engine = config.rollout.engine
    if not model.config:
        found.append(f"{model.path} has no config.json that can be read. Set by: policy.model. Fix: give a complete model directory")
    if not model.has_tokenizer:
        found.append(f"{model.path} has no tokenizer files. Set by: policy.model. Fix: save the tokenizer beside the weights")
    elif not model.has_chat_template:
        found.append(f"the tokenizer of {model.path} has no chat template. Set by: policy.model. Fix: give an instruction-tuned model, or add chat_template.jinja")
    if model.vocabulary and model.tokenizer_size and model.tokenizer_size > model.vocabulary:
        found.append(f"the tokenizer knows {model.tokenizer_size} tokens, the model {model.vocabulary}. Set by: policy.model. Fix: use the tokenizer that belongs to the model")
    if model.needs_remote_code and not getattr(engine, "trust_remote_code", False):
        found.append("the model brings Python code of its own. Set by: policy.model. Fix: read it, pin policy.revision, and set rollout.engine.trust_remote_code: true")
    parallel = getattr(engine, "tensor_parallel_size", 1)
    if model.attention_heads and model.attention_heads % parallel:
        found.append(f"tensor_parallel_size {parallel} does not divide the model's {model.attention_heads} attention heads. Set by: rollout.engine. Fix: use a divisor")
    return found


def _prompts(config: RunConfig, plan: Plan, *, elsewhere: bool) -> tuple[list[Prompt], list[Prompt]]:
    train = _load("prompts.train", config.prompts.train, plan, elsewhere=elsewhere)
    held_out = _load("prompts.held_out", config.prompts.held_out, plan, elsewhere=elsewhere)
    shared = overlapping(train, held_out)
    if shared:
        allowed = config.prompts.allow_overlap
        remedy = "" if allowed else ". Fix: use disjoint sets, or set prompts.allow_overlap: true"
        examples = ", ".join(p.id for p in shared[:3])
        plan.add("overlap", f"{len(shared)} held-out prompts are training prompts too, e.g. {examples}{remedy}", "warning" if allowed else "problem")
    elif train and held_out:
        plan.add("overlap", "no held-out prompt is a training prompt")
    if train and config.prompts.per_round > len(train):
        plan.add("prompts.per_round", f"a round draws {config.prompts.per_round} prompts, but prompts.train has {len(train)}. Fix: lower prompts.per_round to at most {len(train)}, or give more prompts", "problem")
    return train, held_out


def _load(name: str, source: Component.Config, plan: Plan, *, elsewhere: bool) -> list[Prompt]:
    path = str(getattr(source, "path", ""))
    if elsewhere and source.type == "huggingface" and not Path(path).exists():
        plan.add(name, f"{path} is not on this machine: it would be downloaded; not checked", "warning")
        return []
    try:
        prompts: list[Prompt] = create(source).load()
    except PawlError as error:
        plan.add(name, str(error), "problem")
        return []
    plan.add(name, f"{len(prompts)} prompts from {source.type}" if prompts else f"no prompts. Set by: {name}. Fix: give some", "ok" if prompts else "problem")
    return prompts


def groups(config: RunConfig) -> list[Group]:
    """The worker groups of a run, and what each worker asks for."""
    wanted = [
        ("rollout", config.rollout.workers, config.rollout.resources),
        ("verify", config.verify.workers, config.verify.resources),
        ("train", 1, config.training.resources),
    ]
    if config.evaluation.verifiers is not None:
        wanted.insert(2, ("grade", config.verify.workers, config.verify.resources))
    if config.judges:
        wanted.append(("judge", config.verify.judge_workers, config.verify.judge_resources))
    return [Group(name, n, r.num_cpus, r.num_gpus) for name, n, r in wanted]


def _workers(config: RunConfig, plan: Plan, machine: Machine, *, elsewhere: bool) -> None:
    asked = groups(config)
    for group in asked:
        plan.add(f"{group.name} workers", f"{group.workers} x ({group.num_cpus:g} CPU, {group.num_gpus:g} GPU)")
    cpus, gpus = (sum(g.workers * n for g, n in ((g, getattr(g, k)) for g in asked)) for k in ("num_cpus", "num_gpus"))
    parallel = getattr(config.rollout.engine, "tensor_parallel_size", 1)
    if parallel > max(1.0, config.rollout.resources.num_gpus):
        plan.add("GPUs", f"rollout.engine.tensor_parallel_size is {parallel}, but a rollout worker asks for {config.rollout.resources.num_gpus:g} GPU. Fix: set rollout.resources.num_gpus: {parallel}", "problem")
    if elsewhere or config.cluster.backend == "inline":
        where = "not compared: the run is for another machine or cluster" if elsewhere else "inline: all in the driver"
        plan.add("resources", f"{cpus:g} CPUs and {gpus:g} GPUs asked for; {where}")
        return
    have = config.cluster.num_cpus or machine.cpus
    fix = ". Fix: lower resources.num_cpus or workers, or give cluster.address"
    plan.add("CPUs", f"needs {cpus:g}, this machine has {have}{fix if cpus > have else ''}", "problem" if cpus > have else "ok")
    found, short = len(machine.gpu_bytes), gpus > len(machine.gpu_bytes)
    fix = ". Fix: use a CPU config, give cluster.address, or plan with --elsewhere"
    plan.add("GPUs", f"needs {gpus:g} GPU{'s' if gpus > 1 else ''}, this machine has {found}{fix if short else ''}", "problem" if short else "ok")


def _context(config: RunConfig, plan: Plan, model: ModelFacts, counts: TokenCounts) -> None:
    limit = getattr(config.rollout.engine, "max_model_len", None) or model.context_tokens
    spent = counts.longest_prompt + config.rollout.max_tokens
    how = "" if counts.exact else "about "
    text = f"longest prompt {how}{counts.longest_prompt} + rollout.max_tokens {config.rollout.max_tokens} = {how}{spent} tokens"
    if limit is None:
        plan.add("context", f"{text}; the model states no limit")
    elif spent > limit:
        sure = counts.exact or config.rollout.max_tokens >= limit
        plan.add("context", f"{text}, but the limit is {limit}. Fix: lower rollout.max_tokens, or drop long prompts", "problem" if sure else "warning")
    else:
        plan.add("context", f"{text}, of {limit}")
    if spent > config.training.max_length:
        plan.add("context", f"sequences may reach {spent} tokens; those over training.max_length {config.training.max_length} are dropped", "warning")


def _memory(config: RunConfig, plan: Plan, model: ModelFacts, counts: TokenCounts, machine: Machine | None) -> None:
    parts = memory_of_run(config, model, counts)
    on_gpu = any(g.num_gpus for g in groups(config))
    total = sum(parts.values())
    text = " + ".join(f"{name} {memory_text(size)}" for name, size in parts.items() if size)
    text = f"about {memory_text(total)} ({text})"
    have = 0 if machine is None else sum(machine.gpu_bytes) if on_gpu else machine.memory_bytes
    if machine is None or (on_gpu and not have):
        plan.add("memory", f"{text}; not compared")
    elif total > have:
        plan.add("memory", f"{text}, but there are {memory_text(have)}. Fix: a smaller model, policy.adapter, training.micro_batch_size, or more memory", "problem")
    elif not on_gpu and total > machine.available_bytes:
        plan.add("memory", f"{text}; {memory_text(machine.available_bytes)} are free now", "warning")
    else:
        plan.add("memory", f"{text} of {memory_text(have)}")


def _cost(config: RunConfig, plan: Plan, counts: TokenCounts) -> None:
    plan.add("a round", f"{counts.samples} samples, up to {counts.sampled_tokens} tokens; update on up to {counts.max_examples} trajectories")
    plan.add("a measurement", f"{counts.held_out_samples} samples, up to {counts.measured_tokens} tokens; {config.rounds + 1} times")


def _writes(config: RunConfig, plan: Plan, run_folder: Path, disk: tuple[int, int], *, elsewhere: bool) -> None:
    parent = existing_parent(run_folder)
    plan.add("writes", f"{run_folder.absolute()} (policies, samples, examples, journal)")
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        plan.add("writes", f"{parent} cannot be written to. Fix: give another --runs-dir", "problem")
    tracked = sqlite_file(config.tracking.uri) if config.tracking.enabled else None
    if tracked is not None:
        folder = existing_parent(tracked.absolute().parent)
        writable = folder.is_dir() and os.access(folder, os.W_OK)
        plan.add("writes", f"{tracked.absolute()} (MLflow)" if writable else f"{folder} cannot be written to. Set by: tracking.uri. Fix: another place", "ok" if writable else "problem")
    per_round, total = disk
    text = f"about {memory_text(per_round)} a round, {memory_text(total)} in all"
    if elsewhere:
        plan.add("disk", f"{text}; not compared")
        return
    free = free_disk(run_folder)
    plan.add("disk", f"{text}; {memory_text(free)} free" + ("" if total <= free else ". Fix: make room, or give another --runs-dir"), "ok" if total <= free else "problem")


def _network(config: RunConfig, plan: Plan) -> None:
    if config.cluster.backend == "ray":
        local = "Ray picks free ports on this machine when it starts"
        plan.add("ports", local if config.cluster.address is None else f"joins Ray at {config.cluster.address}")
    if config.tracking.enabled:
        plan.add("tracking", redact(config.tracking.uri))
    for judge in config.judges:
        backend = judge.backend if isinstance(judge, Judge.Config) else None
        address, key = getattr(backend, "base_url", None), getattr(backend, "api_key_env", None)
        if address:
            plan.add("judge", f"{judge.source} asks {redact(str(address))}")
        if key and key not in os.environ:
            plan.add("judge", f"environment variable {key} is not set. Set by: judges.backend.api_key_env. Fix: export it", "problem")
