"""The part of the preflight that tries the model's chat template, the prompts' roles and the strategies together.

It happens in a process of its own, which loads the tokenizer and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from orchestrator.config.run_config import RunConfig
from orchestrator.plan.inputs import is_fake
from orchestrator.plan.lines import Plan
from orchestrator.plan.model import ModelFacts
from orchestrator.plan.sizes import fast_tokenizer
from policies.base.records import Prompt
from workers.isolation.child_process import (
    ChildLostError,
    ChildProcess,
    ChildTimedOutError,
    clean_text,
    line_of,
)
from workers.rollout.preview_child import Job, Report, StrategyToTry

SECONDS = 600.0
"""Longest time to load the tokenizer and try everything; importing transformers takes most of it."""
_MAX_KINDS = 50


def plan_template(
    config: RunConfig,
    plan: Plan,
    model: ModelFacts | None,
    prompts: Sequence[Prompt],
    *,
    elsewhere: bool,
) -> None:
    """Add what a chat template that is told of this run's prompts, tools and observations makes of them.

    Args:
        config: what would run.
        plan: where the lines go.
        model: the starting model; None when it is not here.
        prompts: training prompts, then held-out ones.
        elsewhere: the run is for another machine: what cannot be loaded on this one is a warning.
    """
    plays = any(s.config["type"] == "episode" for s in _strategies(config))
    if is_fake(config):
        if not plays:
            return
        folder = None
    elif model is None or not (model.has_tokenizer and model.has_chat_template):
        return
    else:
        folder = str(model.path)
        tokenizer = model.path / "tokenizer.json"
        if tokenizer.is_file() and fast_tokenizer(tokenizer) is None:
            plan.add(
                "chat template",
                f"not tried, because {tokenizer} cannot be read as a tokenizer. Set by: policy.model. Fix: save the "
                "tokenizer beside the weights again",
                "warning",
            )
            return
    report, failure = _tried(job_of(config, folder, prompts))
    if report is None:
        plan.add(
            "chat template",
            f"it could not be tried: {failure}. Set by: policy.model and rollout.strategy. Fix: load the tokenizer "
            "and the environment in a Python shell",
            "warning" if elsewhere else "problem",
        )
        return
    for finding in report.findings:
        verdict = finding.verdict
        plan.add(
            finding.what,
            finding.found,
            "warning"
            if elsewhere and verdict == "problem" and finding.what != "chat template"
            else verdict,
        )


def job_of(config: RunConfig, folder: str | None, prompts: Sequence[Prompt]) -> Job:
    """Return what the other process is to try; `folder` is that of the model, None for the scripted fake."""
    return Job(
        model=folder,
        trust_remote_code=config.hosting.trusts_code,
        chat=config.rollout.chat(datetime.now(UTC).date().isoformat()),
        strategies=tuple(_strategies(config)),
        prompts=_kinds(prompts),
    )


def _tried(job: Job) -> tuple[Report | None, str]:
    """The report, or why there is none."""
    child = ChildProcess("workers.rollout.preview_child")
    try:
        return child.exchange(line_of(job), Report, SECONDS), ""
    except ChildTimedOutError:
        return None, clean_text(child.exit_report(f"took more than {SECONDS:g} s"))
    except ChildLostError as error:
        return None, clean_text(child.exit_report(str(error)))
    finally:
        child.kill()


def _strategies(config: RunConfig) -> Iterator[StrategyToTry]:
    """Every strategy of the run once: its own first, then those of stages."""
    seen = []
    places = [("rollout.strategy", config.rollout.strategy)]
    places += [
        (f"stages[{stage.index}].strategy", stage.strategy) for stage in config.resolved_stages
    ]
    for where, strategy in places:
        if strategy not in seen:
            seen.append(strategy)
            yield StrategyToTry(where=where, config=strategy.model_dump(mode="json"))


def _kinds(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The first prompt of each sequence of roles and set of tools, the first of all first."""
    found: dict[tuple[object, ...], Prompt] = {}
    for prompt in prompts:
        names = tuple(str(tool) for tool in prompt.tools)
        found.setdefault((*(m.role for m in prompt.messages), names), prompt)
        if len(found) == _MAX_KINDS:
            break
    return tuple(found.values())
