"""The part of the preflight that looks at the objective: a user's loss is tried, a routers' loss must be there.

The losses that ship are tried by their tests; one from a user's file would first be called after a round of sampling.
It is tried on one microbatch, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess  # nosec B404
import sys

from orchestrator.config.plug_ins.asked import loss_refused
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from orchestrator.plan.model import ModelFacts
from policies.base.component import Component, reference_to
from policies.base.errors import ConfigurationError, explain
from policies.plug_ins.stand_ins import is_stand_in

TRIAL_SECONDS = 120.0
"""Longest wait for the trial: an import of torch and a few calls of the formula."""


def plan_losses(config: RunConfig, plan: Plan) -> None:
    """Add a line for every loss that is not shipped; a problem when a microbatch of it cannot be trained on."""
    tried: list[Component.Config] = []
    for stage in config.resolved_stages:
        loss = stage.training.loss
        shipped = type(loss).component.__module__.startswith("policies.objectives.losses.")
        if shipped or loss in tried:
            continue
        tried.append(loss)
        refused = _refused_there(config, loss) if is_stand_in(loss) else _refused(loss)
        text = f"{loss.type}: one microbatch tried, every row has a finite loss and a gradient"
        plan.add("loss", refused or text, "ok" if refused is None else "problem")


def plan_routers(config: RunConfig, plan: Plan, model: ModelFacts) -> None:
    """Add a problem when a stage wants the routers' loss of a model that has none, or none that counts."""
    if not any(stage.training.router_aux_loss for stage in config.resolved_stages):
        return
    inner = model.config.get("text_config")
    settings = inner if isinstance(inner, dict) else model.config
    coefficient = settings.get("router_aux_loss_coef")
    if not coefficient:
        plan.add(
            "loss",
            explain(
                "the routers' loss of a mixture of experts is to be added, and the model's config.json gives it no "
                "coefficient (router_aux_loss_coef)",
                value=coefficient,
                where="training.router_aux_loss and policy.model",
                fix="set training.router_aux_loss: false",
            ),
            "problem",
        )


def _refused_there(config: RunConfig, loss: Component.Config) -> str | None:
    try:
        return loss_refused(config, loss, TRIAL_SECONDS)
    except ConfigurationError as error:
        return _unanswered(loss, str(error))


def _refused(loss: Component.Config) -> str | None:
    asked = {
        "reference": reference_to(type(loss).component),
        "config": loss.model_dump(mode="json"),
    }
    command = [sys.executable, "-P", "-m", "policies.objectives.loss_trial"]
    try:
        done = subprocess.run(  # nosec B603 # our own module
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
        answer: str | None = json.loads(done.stdout.splitlines()[-1])["refused"]
    except subprocess.TimeoutExpired:
        return _unanswered(loss, f"no answer in {TRIAL_SECONDS:g} s")
    except (IndexError, KeyError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        return _unanswered(loss, f"exit {done.returncode}: {last[0][:300]}")
    return answer


def _unanswered(loss: Component.Config, what: str) -> str:
    return explain(
        "the loss could not be tried on a microbatch",
        value=what,
        where=f"training.loss ({loss.type})",
        fix="mend the file: it must be importable, and its formula must return",
    )
