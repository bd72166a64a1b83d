"""Questions of the driver to plug-ins: each asks the process of the plug-ins, or a component of ours at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter

from orchestrator.acceptance.measurement import Evidence
from orchestrator.acceptance.rule import AcceptanceRule, Decision
from orchestrator.config.plug_ins.configs import settings_of
from orchestrator.config.plug_ins.host import ask, hosting, remembered
from orchestrator.config.plug_ins.messages import Question
from orchestrator.config.run_config import RunConfig
from policies.base.component import Component, create
from policies.base.component_walk import stated_requirements
from policies.base.errors import PawlError, VerificationError, boundary
from policies.base.records import Prompt
from policies.objectives.loss import Loss
from policies.objectives.reference import ReferencePlan, ReferenceSchedule
from policies.plug_ins.stand_ins import is_stand_in
from workers.judge.judge import Unavailable
from workers.verify.verifier import Verifier

_PROMPTS_AT_ONCE = 500


@dataclass(frozen=True)
class Judging:
    """A verifier's word on one prompt before anything is judged."""

    refused: str
    """Why no attempt at it could be judged; empty when one can."""
    solution: str | None
    """A completion that must be scored 1."""
    lacks_answer: bool


def keeps_out(config: RunConfig, verifier: Verifier.Config) -> bool:
    """Tell whether the verifier is code of a user's that this process does not import."""
    if is_stand_in(verifier):
        return True
    return config.plug_ins is not None and bool(stated_requirements(verifier).code)


def judging_of(
    config: RunConfig, verifier: Verifier.Config, prompts: Sequence[Prompt]
) -> tuple[list[Judging], str]:
    """Return what the verifier says of each prompt, and how it is called for the first (`Verifier.described`).

    Raises:
        PawlError: it cannot be made.
    """
    if not keeps_out(config, verifier):
        return _judging_here(verifier, prompts)
    key = verifier.model_dump_json()
    return remembered(key, prompts, lambda: _judging_there(config, verifier, prompts))


def _judging_here(
    verifier: Verifier.Config, prompts: Sequence[Prompt]
) -> tuple[list[Judging], str]:
    with boundary(VerificationError, f"verifier {verifier.source!r} cannot be made"):
        made: Verifier = create(verifier)
    return [judging(made, prompt) for prompt in prompts], described(made, prompts)


def judging(verifier: Verifier, prompt: Prompt) -> Judging:
    """Return what a verifier that was made says of one prompt."""
    refused, solution, lacks = "", None, False
    try:
        with boundary(
            VerificationError, f"verifier {verifier.config.source!r}, prompt {prompt.id!r}"
        ):
            verifier.check_prompt(prompt)
    except PawlError as error:
        refused = str(error)
    try:
        with boundary(VerificationError, "a look at a prompt"):
            lacks = bool(verifier.lacks_answer(prompt))
            if verifier.config.level != "step":
                solution = verifier.reference_completion(prompt)
    except PawlError as error:
        refused = refused or str(error)
    return Judging(refused, solution, lacks)


def described(verifier: Verifier, prompts: Sequence[Prompt]) -> str:
    """Tell how a function is called; empty where there is none, or none that can be called."""
    try:
        with boundary(VerificationError, f"verifier {verifier.config.source!r}"):
            return verifier.described(prompts[0]) if prompts else ""
    except PawlError:
        return ""


def _judging_there(
    config: RunConfig, verifier: Verifier.Config, prompts: Sequence[Prompt]
) -> tuple[list[Judging], str]:
    found: list[Judging] = []
    first = ""
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        body = {
            "config": verifier.model_dump(mode="json"),
            "source": verifier.source,
            "prompts": [
                p.model_dump(mode="json") for p in prompts[start : start + _PROMPTS_AT_ONCE]
            ],
        }
        told = ask(Question.JUDGING, body, settings_of(config))
        found += [Judging(*row) for row in told["rows"]]
        first = first or str(told["described"])
    return found, first


def load_prompts(
    config: RunConfig, source: Component.Config
) -> tuple[list[Prompt], tuple[str, ...]]:
    """The prompts of a source, and its notes.

    Raises:
        PawlError: as the source does; what a plug-in raises besides is an InputError.
    """
    if not is_stand_in(source):
        reader = create(source)
        return reader.load(), reader.notes()
    settings = settings_of(config)
    seconds = config.cluster.start_timeout_seconds
    with hosting():
        body = {"config": source.model_dump(mode="json")}
        told = ask(Question.PROMPTS, body, settings, seconds=seconds)
        found: list[Prompt] = []
        while len(found) < int(told["number"]):
            more = ask(Question.MORE_PROMPTS, {"start": len(found)}, settings)
            found += [Prompt.model_validate_json(text) for text in more["prompts"]]
    return found, tuple(told["notes"])


def reference_plan(
    config: RunConfig, schedule: ReferenceSchedule.Config, served: Sequence[int]
) -> ReferencePlan:
    """The reference of the round after those in which `served` served."""
    if not is_stand_in(schedule):
        made: ReferenceSchedule = create(schedule)
        return made.plan(served)
    body = {"config": schedule.model_dump(mode="json"), "served": list(served)}
    return ReferencePlan.model_validate(ask(Question.REFERENCE, body, settings_of(config)))


def acceptance_of(config: RunConfig, rule: Component.Config) -> AcceptanceRule:
    """The rule of a stage; one that is a plug-in decides in its process."""
    if not is_stand_in(rule):
        made: AcceptanceRule = create(rule)
        return made
    return _RuleElsewhere(config, rule)


def acceptance_by_stage(config: RunConfig) -> list[AcceptanceRule]:
    """The rule of every stage, in order."""
    return [acceptance_of(config, stage.sections.acceptance) for stage in config.resolved_stages]


class _RuleElsewhere(AcceptanceRule):
    """Asks the process of the plug-ins for each decision."""

    def __init__(self, config: RunConfig, rule: Component.Config) -> None:
        super().__init__(rule)
        self._run = config
        self.selects = cast("type[AcceptanceRule]", type(rule).component).selects  # type: ignore[misc]

    def measure_again(self, evidence: Evidence) -> tuple[int, ...]:
        return tuple(self._ask(Question.MEASURE_AGAIN, evidence)["versions"])

    def decide(self, evidence: Evidence) -> Decision:
        return Decision(**self._ask(Question.DECIDE, evidence))

    def _ask(self, what: Question, evidence: Evidence) -> dict[str, Any]:
        told = _EVIDENCE.dump_python(evidence, mode="json")
        body = {"config": self.config.model_dump(mode="json"), "evidence": told}
        return ask(what, body, settings_of(self._run))


_EVIDENCE = TypeAdapter(Evidence)


def objective_of(loss: Component.Config) -> Loss:
    """The loss with what it says of itself; one that is a plug-in cannot compute here."""
    if not is_stand_in(loss):
        made: Loss = create(loss)
        return made
    told: Callable[[Any], Loss] = type(loss).component  # type: ignore[assignment]
    return told(loss)


def backend_probe(
    config: RunConfig, backend: Component.Config, here: Callable[[], Unavailable | None]
) -> Unavailable | None:
    """Tell why a judge backend cannot answer; `here` asks one of ours."""
    if not is_stand_in(backend):
        return here()
    body = {"config": backend.model_dump(mode="json")}
    told = ask(Question.BACKEND, body, settings_of(config))
    return Unavailable(told["message"], told["may_pass"]) if told["message"] else None


def loss_refused(config: RunConfig, loss: Component.Config, seconds: float) -> str | None:
    """Tell why one microbatch of a loss that is a plug-in cannot be trained on."""
    body = {"config": loss.model_dump(mode="json")}
    told = ask(Question.LOSS, body, settings_of(config), seconds=seconds)["refused"]
    return None if told is None else str(told)
