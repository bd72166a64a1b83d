"""The part of the preflight that asks every verifier whether it can judge the prompts: answers, tests, patterns.

A prompt that no attempt can be judged on costs its whole budget and teaches nothing; this is known before round 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from orchestrator.config.plug_ins.asked import judging_of
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from policies.base.errors import PawlError, explain
from policies.base.records import Prompt
from policies.base.requirements import POLICY
from policies.plug_ins.stand_ins import is_stand_in
from workers.rollout.strategy import RolloutStrategy
from workers.verify.verifier import Verifier

NUM_SHOWN = 3


def plan_answers(
    config: RunConfig,
    plan: Plan,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    name: str = "prompts.held_out",
) -> None:
    """Add a line for every verifier that cannot judge some prompts, and for every judge that is the policy itself.

    So for a stage's strategy that cannot attempt some prompts, because their rows lack what it reads.
    The former is a problem when they are a larger share than `limits.max_verdict_errors` allows, else a warning.
    """
    if train:
        _own_judges(config, plan)
        _recorded_answers(config, plan, train)
    allowed = config.limits.max_verdict_errors
    for where, verifiers, prompts in (
        ("prompts.train", config.verifiers, train),
        (name, config.evaluation_verifiers, held_out),
    ):
        for verifier in verifiers:
            reasons = _refused(config, verifier, prompts)
            if reasons:
                told = list(dict.fromkeys(reasons))  # the same of every prompt is said once
                examples = "\n  ".join(told[:NUM_SHOWN])
                plan.add(
                    where,
                    f"{len(reasons)} of {len(prompts)} prompts cannot be judged by {verifier.source}:\n  "
                    + examples
                    + ("\n  ..." if len(told) > NUM_SHOWN else ""),
                    "problem" if len(reasons) > allowed * len(prompts) else "warning",
                )


def _own_judges(config: RunConfig, plan: Plan) -> None:
    """Warn of judges that are versions of the policy: models tend to prefer text like their own."""
    for each in config.components_of("judge"):
        judge = config.judges[int(each.place[1])]
        for model in each.needs.models:
            if model.name not in (POLICY, config.policy.model):
                continue
            plan.add(
                "judges",
                explain(
                    f"judge {judge.source!r} is the policy's own model: models tend to prefer text like their own",
                    value=model.name,
                    where=f"{each.setting}.{model.set_by}",
                    fix="give another model, or keep it and watch eval/pass@1, which verifiers alone decide",
                ),
                "warning",
            )


def _recorded_answers(config: RunConfig, plan: Plan, train: Sequence[Prompt]) -> None:
    """Add a line for every stage whose strategy finds no attempt in the rows of some prompts."""
    for stage in config.resolved_stages:
        if is_stand_in(stage.strategy):
            continue
        strategy = cast("type[RolloutStrategy]", type(stage.strategy).component)
        found = (strategy.refused_prompt(stage.strategy, prompt) for prompt in train)
        if reasons := [reason for reason in found if reason]:
            share = config.limits.max_failed_trajectories
            plan.add(
                "prompts.train",
                f"{len(reasons)} of {len(train)} prompts cannot be attempted by {stage.strategy.type} (stage "
                f"{stage.name}):\n  " + "\n  ".join(reasons[:NUM_SHOWN]),
                "problem" if len(reasons) > share * len(train) else "warning",
            )


def _refused(config: RunConfig, verifier: Verifier.Config, prompts: Sequence[Prompt]) -> list[str]:
    """Tell why prompts cannot be judged, one reason each."""
    try:
        found, _ = judging_of(config, verifier, prompts)
    except PawlError as error:
        return [str(error)] * len(prompts)
    return [each.refused for each in found if each.refused]
