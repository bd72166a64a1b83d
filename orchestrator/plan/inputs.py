"""The part of the preflight that looks at what goes in: the model's files, the prompts, the context window."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from orchestrator.config.model_files import resolve_model
from orchestrator.config.plug_ins.asked import load_prompts
from orchestrator.config.remote_code import code_files, foreign_code, trusted_by
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import PromptSettings
from orchestrator.plan.answers import plan_answers
from orchestrator.plan.functions import show_functions
from orchestrator.plan.lines import Plan
from orchestrator.plan.model import ModelFacts, adapter_base, read_model
from orchestrator.plan.sizes import TokenCounts, completion_tokens, memory_text
from orchestrator.prompts.overlap import overlapping
from orchestrator.prompts.source import PromptSource
from policies.base.component import Component
from policies.base.component_walk import stated_requirements
from policies.base.errors import InputError, PawlError
from policies.base.records import Prompt
from policies.storage.fake_model import read_skill


def is_fake(config: RunConfig) -> bool:
    """Tell whether the scripted engine samples: its model has neither layers nor a tokenizer."""
    return config.hosting.scripted


def plan_model(config: RunConfig, plan: Plan, *, elsewhere: bool) -> ModelFacts | None:
    """Find and read the starting model; None when it is not here."""
    try:
        path = resolve_model(config.policy, download=False, with_code=bool(trusted_by(config)))
        facts = read_model(path)
        if is_fake(config):
            read_skill(path)
    except InputError as error:
        hub = is_hub_id(config.policy.model) and not Path(config.policy.model).is_dir()
        offline = os.environ.get("HF_HUB_OFFLINE", "") in (
            "1",
            "true",
            "True",
            "YES",
            "yes",
            "ON",
            "on",
        )
        if hub and (elsewhere or not offline):
            plan.add(
                "model",
                f"{config.policy.model} is not on this machine: it would be downloaded; its size "
                "and context are not checked",
                "warning",
            )
        elif hub:
            plan.add(
                "model",
                f"{config.policy.model} is not on this machine and HF_HUB_OFFLINE is set. Set by: "
                "policy.model. Fix: give a local directory, or download it first",
                "problem",
            )
        else:
            plan.add("model", str(error), "problem")
        return None
    plan.add(
        "model",
        f"{path} ({facts.parameters / 1e6:.1f} M parameters, {memory_text(facts.weight_bytes)})",
    )
    _code_that_would_run(config, plan, path)
    for problem in facts.problems + ([] if is_fake(config) else _model_problems(config, facts)):
        plan.add("model", problem, "problem")
    return facts


def _code_that_would_run(config: RunConfig, plan: Plan, path: Path) -> None:
    """Name the code that comes with models, with its digests: it runs with the rights of the workers."""
    trusted = trusted_by(config)
    for model in dict.fromkeys(trusted.values()):
        settings = ", ".join(where for where, name in trusted.items() if name == model)
        own = path if model == config.policy.model else Path(model)
        files = ", ".join(f"{n} sha256:{d[:16]}" for n, d in code_files(own).items()) or "none"
        plan.add(
            "remote code",
            f"{settings} is on: Python code of {own} may run "
            f"with all rights of the workers: {files}",
            "warning",
        )


def is_hub_id(name: str) -> bool:
    """Tell whether `name` can be the id of a model on the hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _model_problems(config: RunConfig, model: ModelFacts) -> list[str]:
    found: list[str] = []
    base = adapter_base(model.path)
    if not model.config and base:
        found.append(
            f"this is an adapter and not a model (got {model.path}, made for {base}). Set by: policy.model. Fix: give "
            f"the base model with the adapter merged into it, or {base} itself"
        )
    elif not model.config:
        found.append(
            f"{model.path} has no config.json that can be read. Set by: policy.model. Fix: give a "
            "complete model directory"
        )
    if not model.has_tokenizer:
        found.append(
            f"{model.path} has no tokenizer files. Set by: policy.model. Fix: save the tokenizer "
            "beside the weights"
        )
    elif not model.has_chat_template:
        found.append(
            f"the tokenizer of {model.path} has no chat template. Set by: policy.model. Fix: give "
            "an instruction-tuned model, or add chat_template.jinja"
        )
    if model.vocabulary and model.tokenizer_size and model.tokenizer_size > model.vocabulary:
        found.append(
            f"the tokenizer knows {model.tokenizer_size} tokens, the model {model.vocabulary}. "
            "Set by: policy.model. Fix: use the tokenizer that belongs to the model"
        )
    if model.needs_remote_code and not trusted_by(config):
        found.append(
            f"the model brings Python code of its own (got auto_map in {model.path / 'config.json'}). Set by: "
            "policy.model. Fix: read it, pin policy.revision, and set rollout.engine.trust_remote_code: true"
        )
    foreign = foreign_code(model.config) if trusted_by(config) else []
    if foreign:
        found.append(
            f"the model names code of another repository, which nothing pins (got {', '.join(foreign)}). Set by: "
            "auto_map in its config.json. Fix: copy that code beside the weights and read it"
        )
    hosting = config.hosting
    parallel = hosting.gpus if hosting.splits_heads else 1
    if model.attention_heads and model.attention_heads % parallel:
        found.append(
            f"{hosting.gpus_set_by} {parallel} does not divide the model's {model.attention_heads} "
            "attention heads. Set by: rollout.engine. Fix: use a divisor"
        )
    return found


def plan_prompts(
    config: RunConfig, plan: Plan, *, elsewhere: bool
) -> tuple[list[Prompt], list[Prompt]]:
    """Load every training set and the held-out set, and look for prompts that stand in both kinds."""
    train = {
        name: _load(config, name, settings.train, plan, elsewhere=elsewhere)
        for name, settings in _training_sets(config).items()
    }
    held_out = _load(config, "prompts.held_out", config.prompts.held_out, plan, elsewhere=elsewhere)
    return _compared(config, plan, train, held_out)


def _training_sets(config: RunConfig) -> dict[str, PromptSettings]:
    """The run's own set, and those that stages have of their own, by the setting that names them."""
    own = {
        f"stages[{stage.index}].prompts.train": stage.sections.prompts
        for stage in config.resolved_stages
        if stage.sections.prompts.train != config.prompts.train
    }
    return {"prompts.train": config.prompts, **own}


def _portions(
    config: RunConfig, sets: Mapping[str, list[Prompt]]
) -> Iterator[tuple[str, str, int | None]]:
    """The setting of every round's size, the set that it draws from, and the size."""
    yield "prompts.per_round", "prompts.train", config.prompts.per_round
    for stage in config.resolved_stages:
        at = f"stages[{stage.index}].prompts"
        if stage.own_prompts:
            named = f"{at}.train" if f"{at}.train" in sets else "prompts.train"
            yield f"{at}.per_round", named, stage.sections.prompts.per_round


def _compared(
    config: RunConfig, plan: Plan, sets: Mapping[str, list[Prompt]], held_out: list[Prompt]
) -> tuple[list[Prompt], list[Prompt]]:
    """Look for prompts that stand in both kinds of sets, and for rounds that are larger than their set."""
    train = [prompt for of_one in sets.values() for prompt in of_one]
    shared = overlapping(train, held_out)
    if shared:
        allowed = config.prompts.allow_overlap
        remedy = (
            ""
            if allowed
            else f". Set by: {', '.join(sets)} and prompts.held_out. Fix: use disjoint sets, or set "
            "prompts.allow_overlap: true"
        )
        examples = ", ".join(p.id for p in shared[:3])
        plan.add(
            "overlap",
            f"{len(shared)} held-out prompts are training prompts too, e.g. {examples}{remedy}",
            "warning" if allowed else "problem",
        )
    elif train and held_out:
        plan.add("overlap", "no held-out prompt is a training prompt")
    for setting, name, per_round in _portions(config, sets):
        number = len(sets[name])
        if number and per_round is not None and per_round > number:
            plan.add(
                setting,
                f"a round draws {per_round} prompts, but {name} has {number}. Set by: {setting}. Fix: lower {setting} "
                f"to at most {number}, or give more prompts",
                "problem",
            )
    return train, held_out


def plan_test_prompts(
    config: RunConfig,
    plan: Plan,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    elsewhere: bool,
) -> None:
    """Load the prompts of `prompts.test`, and look for those that training or a decision sees too."""
    if config.prompts.test is None:
        return
    test = _load(config, "prompts.test", config.prompts.test, plan, elsewhere=elsewhere)
    shared = overlapping([*train, *held_out], test)
    if shared:
        allowed = config.prompts.allow_overlap
        remedy = (
            ". Set by: prompts.test. Fix: use disjoint sets, or set prompts.allow_overlap: true"
        )
        examples = ", ".join(p.id for p in shared[:3])
        plan.add(
            "overlap",
            f"{len(shared)} test prompts are training or held-out prompts too, e.g. {examples}"
            f"{'' if allowed else remedy}",
            "warning" if allowed else "problem",
        )
    plan_answers(config, plan, (), test, name="prompts.test")


def check_prompts(config: RunConfig) -> Plan:
    """Return what `pawl validate` looks at besides the config: the prompts, where that takes no network and no imports.

    A data set of the hub, or one that a heavy package makes, is left to `pawl plan` and `pawl run`.
    """
    plan = Plan()
    sources = {name: settings.train for name, settings in _training_sets(config).items()}
    loaded: dict[str, list[Prompt]] = {}
    for name, source in {**sources, "prompts.held_out": config.prompts.held_out}.items():
        if _is_heavy(source):
            plan.add(name, f"{source.type} is not read here: `pawl plan` reads it")
            loaded[name] = []
        else:
            loaded[name] = _load(config, name, source, plan, elsewhere=True)
    measured = loaded.pop("prompts.held_out")
    train, held_out = _compared(config, plan, loaded, measured)
    plan_answers(config, plan, train, held_out)
    show_functions(config, plan, train, held_out)
    test = config.prompts.test
    if test is not None and not _is_heavy(test):
        plan_test_prompts(config, plan, train, held_out, elsewhere=True)
    return plan


def _is_heavy(source: Component.Config) -> bool:
    return cast("type[PromptSource]", type(source).component).is_heavy


def _load(
    config: RunConfig, name: str, source: Component.Config, plan: Plan, *, elsewhere: bool
) -> list[Prompt]:
    absent = [n for n in stated_requirements(source).data_sets if not Path(n).exists()]
    if elsewhere and absent:
        said = f"{absent[0]} is not on this machine: it would be downloaded; not checked"
        plan.add(name, said, "warning")
        return []
    try:
        prompts, notes = load_prompts(config, source)
    except PawlError as error:
        plan.add(name, str(error).replace("prompts.*", name), "problem")
        return []
    for note in notes:
        plan.add(name, note)
    plan.add(
        name,
        f"{len(prompts)} prompts from {source.type}"
        if prompts
        else f"no prompts. Set by: {name}. Fix: give some",
        "ok" if prompts else "problem",
    )
    return prompts


def plan_context(config: RunConfig, plan: Plan, model: ModelFacts, counts: TokenCounts) -> None:
    """Compare the longest sequence with what the model, the engine and the trainer take."""
    limit = config.hosting.max_context or model.context_tokens
    completion = completion_tokens(config, config.longest_turn)
    spent = counts.longest_prompt + completion
    how = "" if counts.exact else "about "
    turns = stated_requirements(config.rollout.strategy).max_turns
    what = "rollout.max_tokens" if turns is None else f"up to {turns} turns of"
    text = (
        f"longest prompt {how}{counts.longest_prompt} + {what} {completion} = {how}{spent} tokens"
    )
    if limit is None:
        plan.add("context", f"{text}; the model states no limit")
    elif spent > limit:
        sure = turns is None and (counts.exact or completion >= limit)
        plan.add(
            "context",
            f"{text}, but the limit is {limit}. Fix: lower rollout.max_tokens, or drop long prompts",
            "problem" if sure else "warning",
        )
    else:
        plan.add("context", f"{text}, of {limit}")
    if spent > config.training.max_length:
        plan.add(
            "context",
            f"sequences may reach {spent} tokens; those over training.max_length "
            f"{config.training.max_length} are dropped",
            "warning",
        )
    bounds = {"the model's context": limit, "training.max_length": config.training.max_length}
    for name, bound in bounds.items():
        only_train = name == "training.max_length"
        total = counts.num_train if only_train else len(counts.prompt_lengths)
        over = 0 if bound is None else counts.num_longer(bound, only_train=only_train)
        if over:
            every = over == total
            plan.add(
                "context",
                f"{'all' if every else f'about {over} of'} {total} prompts are longer than "
                f"{name} (got {bound} tokens). Set by: prompts and {name}. Fix: leave long prompts out, or raise "
                "the limit",
                "problem" if every and counts.exact else "warning",
            )
