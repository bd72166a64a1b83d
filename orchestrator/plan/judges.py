"""The part of the preflight that is about judges: who answers, and whether a server does answer, with key and model."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.plug_ins.asked import backend_probe
from orchestrator.config.run_config import RunConfig
from orchestrator.config.tracking_uri import redact
from orchestrator.plan.lines import Plan
from orchestrator.plan.other_models import add_model
from policies.base.component import Component, create
from policies.base.component_walk import requirements_of, stated_requirements
from policies.base.errors import (
    ConfigurationError,
    JudgeError,
    PawlError,
    boundary,
    explain,
)
from policies.base.policy_choice import PolicyChoice, RoundsAgo
from policies.base.records import PolicyVersion
from policies.base.requirements import POLICY
from workers.judge.judge import AskingJudge, BackendContext, Judge, Unavailable


def plan_judges(config: RunConfig, plan: Plan, *, elsewhere: bool) -> None:
    """Name what answers each judge, and ask its server one short question.

    Judges that share a backend are told by one line. From a machine that is not the one of the run nothing is asked;
    of a joined cluster only the nodes themselves can tell, so that a failure from here is a warning.
    """
    _soft_labels(config, plan)
    for judge in config.judges:
        _scoring(judge, plan, config.judges.index(judge))
    for index, sources, backend in _backends(config):
        names = ", ".join(sources)
        needs = requirements_of(backend)
        for model in needs.models:
            if model.name == POLICY:
                plan.add("judge", f"{names}: {_when(model.version)}")
            else:
                add_model(plan, model, ("judge", names), f"judges.{index}.backend.{model.set_by}")
        address = ", ".join(redact(host) for host in needs.hosts)
        if address and elsewhere:
            plan.add("judge", f"{names} asks {address}; not tried: another machine")
            continue
        found = _probe(config, backend)
        if found is None:
            asked = f"{address}, which answers" if address else backend.type
            if address or not needs.models:
                plan.add("judge", f"{names} asks {asked}")
        else:
            soft = found.may_pass or config.cluster.address is not None
            plan.add("judge", f"{names}: {found.message}", "warning" if soft else "problem")


def _scoring(judge: Judge.Config, plan: Plan, index: int) -> None:
    """Name what a judge that asks nobody computes its scores with."""
    if isinstance(judge, AskingJudge.Config):
        return
    needs = requirements_of(judge)
    for model in needs.models:
        if model.name == POLICY:
            plan.add("judge", f"{judge.source}: {_when(model.version)}")
        else:
            add_model(plan, model, ("judge", judge.source), f"judges.{index}.{model.set_by}")
    if not needs.models:
        plan.add("judge", f"{judge.source} is {judge.type}")


def _soft_labels(config: RunConfig, plan: Plan) -> None:
    """Warn where soft labels have no judge to come from: scores of 0 and 1 make every label certain."""
    for stage in config.resolved_stages:
        if stated_requirements(stage.training.loss).probabilities and not config.judges:
            at = f"stages[{stage.index}].training" if config.stages else "training"
            plan.add(
                "soft labels",
                explain(
                    "no judge says a probability: labels come from the scores of verifiers, and those that say 0 or 1 "
                    "make every label certain",
                    value=True,
                    where=f"{at}.loss.soft_labels",
                    fix="add a judge of type pairwise, or set it to false",
                ),
                "warning",
            )


def _when(choice: PolicyChoice | None) -> str:
    if isinstance(choice, RoundsAgo):
        return f"the version that served {choice.rounds_ago} rounds ago judges, at first the initial one"
    if choice == "current":
        return "in each round the version of the policy that serves judges"
    if isinstance(choice, int) and choice > 0:
        return (
            f"version {choice} of the policy judges from round {choice + 1} on; until it is published, the version "
            "that serves"
        )
    return "the policy as it came judges, in all rounds"


def _backends(config: RunConfig) -> Iterator[tuple[int, list[str], Component.Config]]:
    """Each different backend with the judges that ask it, and the index of the first of them."""
    found: dict[str, tuple[int, list[str], Component.Config]] = {}
    for index, judge in enumerate(config.judges):
        if not isinstance(judge, AskingJudge.Config):
            continue
        key = judge.backend.model_dump_json()
        found.setdefault(key, (index, [], judge.backend))[1].append(judge.source)
    yield from found.values()


def _probe(config: RunConfig, backend: Component.Config) -> Unavailable | None:
    def here() -> Unavailable | None:
        found: Unavailable | None = create(backend, context=_CONTEXT).probe()
        return found

    try:
        with boundary(JudgeError, f"judge backend {backend.type!r} could not be tried"):
            return backend_probe(config, backend, here)
    except PawlError as error:
        return Unavailable(str(error))


def _no_policy(number: int) -> PolicyVersion:
    raise ConfigurationError(f"policy version {number} is not looked up before a run")


def _no_model(name: str) -> PolicyVersion:
    raise ConfigurationError(f"model {name} is not loaded before a run")


_CONTEXT = BackendContext(policy_version=_no_policy, model_version=_no_model)
