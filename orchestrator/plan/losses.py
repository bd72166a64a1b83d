"""The part of the preflight that tries a user's loss on one microbatch, in a process of its own.

The losses that ship are tried by their tests; one from a user's file would first be called after a round of sampling.
"""

from __future__ import annotations

import json
import subprocess  # nosec B404
import sys

from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from policies.component import Component, reference_to
from policies.errors import explain

TRIAL_SECONDS = 120.0
"""Longest wait for the trial: an import of torch and a few calls of the formula."""


def plan_losses(config: RunConfig, plan: Plan) -> None:
    """Add a line for every loss that is not shipped; a problem when a microbatch of it cannot be trained on."""
    tried: list[Component.Config] = []
    for stage in config.resolved_stages:
        loss = stage.training.loss
        shipped = type(loss).component.__module__.startswith("policies.losses.")
        if shipped or loss in tried:
            continue
        tried.append(loss)
        refused = _refused(loss)
        text = f"{loss.type}: one microbatch tried, every row has a finite loss and a gradient"
        plan.add("loss", refused or text, "ok" if refused is None else "problem")


def _refused(loss: Component.Config) -> str | None:
    asked = {
        "reference": reference_to(type(loss).component),
        "config": loss.model_dump(mode="json"),
    }
    command = [sys.executable, "-P", "-m", "policies.loss_trial"]
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
