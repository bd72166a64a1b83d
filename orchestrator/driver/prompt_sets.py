"""The prompt sets of a run, loaded and checked: training, held-out, test, and those that stages have of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.config.plug_ins.asked import load_prompts as prompts_from
from orchestrator.config.run_config import RunConfig
from orchestrator.prompts.overlap import check_overlap
from orchestrator.rounds.drawing import check_same_prompts
from orchestrator.runs.phases import Drawn
from policies.base.errors import ConfigurationError, explain
from policies.base.records import Prompt


@dataclass(frozen=True)
class PromptSets:
    """Every prompt that a run may see."""

    train: list[Prompt]
    held_out: list[Prompt]
    test: list[Prompt] = field(default_factory=list)
    """Empty without `prompts.test`."""
    by_stage: dict[int, list[Prompt]] = field(default_factory=dict)
    """Training sets of stages that have a source of their own, by index."""


def prompt_sets_as_begun(config: RunConfig, recorded: Drawn | None) -> PromptSets:
    """Load every set; those that round 0 recorded, where the run has begun.

    Raises:
        InputError: a file is wrong, or sets overlap.
        ConfigurationError: a set is too small for the config.
        ResumeError: a set changed since the run began.
    """
    train, held_out = _train_and_held_out(config)
    by_stage = _by_stage(config, held_out)
    every = [*train, *(prompt for of_one in by_stage.values() for prompt in of_one)]
    sets = PromptSets(train, held_out, _test(config, every, held_out), by_stage)
    if recorded is not None:
        check_same_prompts(recorded, train, held_out, sets.test, by_stage)
    return sets


def _train_and_held_out(config: RunConfig) -> tuple[list[Prompt], list[Prompt]]:
    train, _ = prompts_from(config, config.prompts.train)
    held_out, _ = prompts_from(config, config.prompts.held_out)
    if not config.prompts.allow_overlap:
        check_overlap(train, held_out)
    if not train:
        raise _empty("training", "prompts.train", "there is nothing to draw")
    for stage in config.resolved_stages:
        at = f"stages[{stage.index}]." if stage.own_prompts else ""
        if stage.sections.prompts.train == config.prompts.train:
            _check_size(train, stage.sections.prompts.per_round, f"{at}prompts")
    if not held_out:
        raise _empty("held-out", "prompts.held_out", "nothing could be measured")
    return train, held_out


def _by_stage(config: RunConfig, held_out: Sequence[Prompt]) -> dict[int, list[Prompt]]:
    found: dict[int, list[Prompt]] = {}
    for stage in config.resolved_stages:
        settings, name = stage.sections.prompts, f"stages[{stage.index}].prompts"
        if settings.train == config.prompts.train:
            continue
        prompts, _ = prompts_from(config, settings.train)
        if not prompts:
            raise _empty("training", f"{name}.train", "there is nothing to draw")
        _check_size(prompts, settings.per_round, name)
        if not config.prompts.allow_overlap:
            check_overlap(prompts, held_out, other=f"{name}.train")
        found[stage.index] = prompts
    return found


def _test(config: RunConfig, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[Prompt]:
    if config.prompts.test is None:
        return []
    test, _ = prompts_from(config, config.prompts.test)
    if not test:
        raise _empty("test", "prompts.test", "nothing could be measured")
    if not config.prompts.allow_overlap:
        check_overlap(train, test, name="prompts.test")
        check_overlap(held_out, test, name="prompts.test", other="prompts.held_out")
    return test


def _check_size(prompts: Sequence[Prompt], per_round: int | None, at: str) -> None:
    if per_round is not None and per_round > len(prompts):
        raise ConfigurationError(
            explain(
                f"a round draws more prompts than there are: {at}.train has {len(prompts)}",
                value=per_round,
                where=f"{at}.per_round",
                fix=f"lower it to at most {len(prompts)}, or give more prompts",
            )
        )


def _empty(which: str, where: str, why: str) -> ConfigurationError:
    left_out = ", or leave prompts.test out" if which == "test" else ""
    return ConfigurationError(
        explain(
            f"the {which} set is empty: {why}",
            value=0,
            where=where,
            fix=f"give at least one prompt{left_out}",
        )
    )
