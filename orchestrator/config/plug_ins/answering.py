"""Answers of the process of the plug-ins to each question; everything here may run code of a user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from orchestrator.acceptance.measurement import Evidence
from orchestrator.acceptance.rule import ACCEPTANCE, AcceptanceRule
from orchestrator.config.checked import checked
from orchestrator.config.plug_ins.asked import described, judging
from orchestrator.config.plug_ins.messages import Question
from orchestrator.config.plug_ins.watching import Importing
from orchestrator.prompts.source import PROMPT_SOURCES
from policies.base.component import create
from policies.base.errors import (
    ConfigurationError,
    InputError,
    JudgeError,
    VerificationError,
    boundary,
)
from policies.base.records import PolicyVersion, Prompt
from policies.objectives.loss import LOSSES
from policies.objectives.reference import REFERENCES, ReferenceSchedule
from policies.plug_ins.plugin_code import check_number, codes_of
from workers.judge.judge import BACKENDS, BackendContext, Unavailable
from workers.verify.verifier import VERIFIERS, Verifier

Body = dict[str, Any]


@dataclass
class Memory:
    """State that is kept between questions."""

    prompts: list[Prompt] = field(default_factory=list)


def _config(body: Body, importing: Importing, memory: Memory) -> Body:
    config, problems = checked(body["tree"])
    if config is None or problems:
        return {"problems": [p.to_json() for p in problems]}
    dumped = config.model_dump(mode="json")
    facts = [told.model_dump(mode="json") for told in importing.facts()]
    codes = codes_of(
        dumped,
        required=config.required_code,
        imported=importing.references,
        opened=importing.opened,
    )
    check_number(codes)
    return {
        "config": dumped,
        "facts": facts,
        "code": {name: code.model_dump(mode="json") for name, code in codes.items()},
    }


def _judging(body: Body, importing: Importing, memory: Memory) -> Body:
    """One row for each prompt: why it cannot be judged, its solution, whether it lacks the answer; and the call."""
    prompts = [Prompt.model_validate(p) for p in body["prompts"]]
    with boundary(VerificationError, f"verifier {body['source']!r} cannot be made"):
        verifier: Verifier = create(VERIFIERS.parse(body["config"]))
    rows = [judging(verifier, prompt) for prompt in prompts]
    return {
        "rows": [
            [row.refused[:_REASON_CHARACTERS], row.solution, row.lacks_answer] for row in rows
        ],
        "described": described(verifier, prompts),
    }


def _prompts(body: Body, importing: Importing, memory: Memory) -> Body:
    with boundary(InputError, "the prompt source cannot be loaded"):
        source = create(PROMPT_SOURCES.parse(body["config"]))
        loaded = list(source.load())
        notes = [str(note)[:2000] for note in source.notes()][:100]
    for prompt in loaded:
        if not isinstance(prompt, Prompt):
            raise InputError(
                f"the prompt source gives something else than prompts (got {type(prompt).__name__}). Set by: prompts.* "
                f"(type {body['config']['type']}). Fix: return a list of policies.base.records.Prompt from load()"
            )
    memory.prompts = loaded
    return {"number": len(loaded), "notes": notes}


_REASON_CHARACTERS = 2000
_PART_CHARACTERS = 2**20


def _more_prompts(body: Body, importing: Importing, memory: Memory) -> Body:
    parts: list[Any] = []
    size = 0
    for prompt in memory.prompts[int(body["start"]) :]:
        text = prompt.model_dump_json()
        size += len(text)
        if parts and size > _PART_CHARACTERS:
            break
        parts.append(text)
    return {"prompts": parts}


def _reference(body: Body, importing: Importing, memory: Memory) -> Body:
    with boundary(ConfigurationError, "the reference schedule failed"):
        schedule: ReferenceSchedule = create(REFERENCES.parse(body["config"]))
        return schedule.plan([int(v) for v in body["served"]]).model_dump(mode="json")


def _rule(body: Body) -> tuple[AcceptanceRule, Evidence]:
    rule: AcceptanceRule = create(ACCEPTANCE.parse(body["config"]))
    return rule, TypeAdapter(Evidence).validate_python(body["evidence"])


def _decide(body: Body, importing: Importing, memory: Memory) -> Body:
    with boundary(ConfigurationError, "the acceptance rule failed"):
        rule, evidence = _rule(body)
        decision = rule.decide(evidence)
        return {
            "accepted": bool(decision.accepted),
            "reason": str(decision.reason)[:2000],
            "back_to": decision.back_to,
            "best": decision.best,
        }


def _measure_again(body: Body, importing: Importing, memory: Memory) -> Body:
    with boundary(ConfigurationError, "the acceptance rule failed"):
        rule, evidence = _rule(body)
        return {"versions": [int(v) for v in rule.measure_again(evidence)]}


def _no_policy(number: int) -> PolicyVersion:
    raise ConfigurationError(f"policy version {number} is not looked up before a run")


def _no_model(name: str) -> PolicyVersion:
    raise ConfigurationError(f"model {name} is not loaded before a run")


def _backend(body: Body, importing: Importing, memory: Memory) -> Body:
    context = BackendContext(policy_version=_no_policy, model_version=_no_model)
    with boundary(JudgeError, "the judge backend could not be tried"):
        found: Unavailable | None = create(BACKENDS.parse(body["config"]), context=context).probe()
    if found is None:
        return {"message": "", "may_pass": False}  # nosec B105 # says whether a failure may pass
    return {"message": str(found.message), "may_pass": bool(found.may_pass)}


def _loss(body: Body, importing: Importing, memory: Memory) -> Body:
    from policies.objectives.loss_trial import refused_because

    with boundary(ConfigurationError, "the loss cannot be made"):
        loss = create(LOSSES.parse(body["config"]))
    return {"refused": refused_because(loss)}


def _member(body: Body, importing: Importing, memory: Memory) -> Body:
    from orchestrator.config.component_list import foreign_member

    return {"member": foreign_member(str(body["family"]), str(body["name"]))}


def _schema(body: Body, importing: Importing, memory: Memory) -> Body:
    from orchestrator.config.json_schema import foreign_schema

    return {"schema": foreign_schema(str(body["family"]), str(body["name"]))}


ANSWERS: dict[Question, Callable[[Body, Importing, Memory], Body]] = {
    Question.CONFIG: _config,
    Question.JUDGING: _judging,
    Question.PROMPTS: _prompts,
    Question.MORE_PROMPTS: _more_prompts,
    Question.REFERENCE: _reference,
    Question.DECIDE: _decide,
    Question.MEASURE_AGAIN: _measure_again,
    Question.BACKEND: _backend,
    Question.LOSS: _loss,
    Question.MEMBER: _member,
    Question.SCHEMA: _schema,
}
