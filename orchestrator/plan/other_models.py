"""The part of the preflight that is about models besides the policy: whether those that components load are here."""

from __future__ import annotations

import os

from orchestrator.config.model_files import folder_of, resolve_model
from orchestrator.config.run_config import RunConfig
from orchestrator.config.sections import PolicySettings
from orchestrator.plan.inputs import is_hub_id
from orchestrator.plan.lines import Plan
from policies.base.errors import InputError
from policies.base.requirements import ModelRequirement


def plan_other_models(config: RunConfig, plan: Plan) -> None:
    """Add a line for every model that a component loads, but for those of judges, which are told with them."""
    for each in config.components:
        if each.group != "judge":
            for model in each.other_models():
                add_model(plan, model, ("model", each.setting), f"{each.setting}.{model.set_by}")


def add_model(plan: Plan, model: ModelRequirement, told: tuple[str, str], where: str) -> None:
    """Say that a model is here, or would be downloaded, or what is wrong with it.

    Args:
        plan: where the line goes.
        model: not the policy.
        told: what the line is about, and who loads the model.
        where: the setting that names it.
    """
    what, who = told
    path = folder_of(model)
    if path is not None:
        plan.add(what, f"{who} is the model {path}" if what == "judge" else f"{who} loads {path}")
        return
    may_come = is_hub_id(model.name) and os.environ.get("HF_HUB_OFFLINE", "") in ("", "0")
    if may_come:
        plan.add(what, f"{who}: {model.name} would be downloaded", "warning")
        return
    try:
        resolve_model(PolicySettings(model=model.name), download=False)
    except InputError as error:
        plan.add(what, f"{who}: {str(error).replace('policy.model', where)}", "problem")
