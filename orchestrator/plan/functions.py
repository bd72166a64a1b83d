"""The part of the preflight about code that users bring to score with: which parameter gets what, and one try.

A function that is called wrongly, or that raises on everything, costs a whole round of sampling before it is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.plug_ins.asked import judging_of
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from orchestrator.plan.sizes import completion_tokens
from policies.base.component_walk import stated_requirements
from policies.base.errors import PawlError, explain
from policies.base.records import Prompt
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.probe import Probe, probe_attempts
from workers.verify.verifier import VERIFIERS, Verifier

LINE = "function "
"""How the lines begin that say how a function is called: `function mine`."""


def show_functions(
    config: RunConfig, plan: Plan, train: Sequence[Prompt], held_out: Sequence[Prompt]
) -> None:
    """Add a line for every function that scores: which parameter gets what. Nothing is called."""
    for verifier, prompts in _users_own(config, train, held_out):
        described = _described(config, verifier, prompts)
        if described:
            plan.add(f"{LINE}{verifier.source}", described)
            _answers(config, verifier, prompts, plan)


def try_functions(
    config: RunConfig,
    plan: Plan,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    elsewhere: bool,
) -> None:
    """Try every verifier that is the user's own code on made-up attempts at a real prompt, in its own process.

    What fails on all of them, or returns what cannot be scored, is a problem; what fails on some is a warning.

    Args:
        config: what would run.
        plan: where the lines go.
        train: training prompts.
        held_out: held-out prompts.
        elsewhere: the run is for another machine: nothing is tried here.
    """
    if elsewhere:
        show_functions(config, plan, train, held_out)
        return
    longest = completion_tokens(config, config.longest_turn)
    for verifier, prompts in _users_own(config, train, held_out):
        name = f"{LINE}{verifier.source}"
        if _described(config, verifier, prompts):
            _answers(config, verifier, prompts, plan)
        elif stated_requirements(verifier).code:
            continue  # it cannot be called: `plan_answers` said so
        found, tried = _tried(verifier, prompts, longest)
        if found.problem:
            plan.add(
                name, "\n  ".join(t for t in (found.assignment, found.problem) if t), "problem"
            )
            continue
        plan.add(name, "; ".join(t for t in (found.assignment, tried) if t))
        if found.warning:
            plan.add(name, found.warning, "warning")


def _tried(
    config: Verifier.Config, prompts: Sequence[Prompt], max_tokens: int
) -> tuple[Probe, str]:
    """Return what a try showed, and a line about it. What fails at the first prompt is tried at another one, too."""
    with IsolatedVerifier(config) as verifier:
        found = verifier.probe(prompts[0], probe_attempts(prompts[0], max_tokens))
        prompt = prompts[len(prompts) // 2]
        if found.failed and prompt is not prompts[0]:
            second = verifier.probe(prompt, probe_attempts(prompt, max_tokens))
            if not second.failed:
                warning = "\n  ".join(t for t in (found.problem, second.warning) if t)
                return second.model_copy(update={"warning": warning}), _line(second, prompt)
        return found, _line(found, prompts[0])


def _line(found: Probe, prompt: Prompt) -> str:
    return f"tried on made-up attempts at {prompt.id}, with scores {found.said}"


def _users_own(
    config: RunConfig, train: Sequence[Prompt], held_out: Sequence[Prompt]
) -> list[tuple[Verifier.Config, Sequence[Prompt]]]:
    """Verifiers that are not shipped, each once, with the prompts that they judge, where there are any."""
    found: list[tuple[Verifier.Config, Sequence[Prompt]]] = []
    for verifiers, prompts in ((config.verifiers, train), (config.evaluation_verifiers, held_out)):
        for verifier in verifiers:
            home = type(verifier).component.__module__
            calls = stated_requirements(verifier).code
            shipped = home.startswith(f"{VERIFIERS.package}.") and not calls
            if prompts and not shipped and verifier not in [known for known, _ in found]:
                found.append((verifier, prompts))
    return found


def _described(config: RunConfig, verifier: Verifier.Config, prompts: Sequence[Prompt]) -> str:
    """The assignment; empty where there is no function, or none that can be called."""
    try:
        return judging_of(config, verifier, prompts)[1]
    except PawlError:
        return ""


def _answers(
    config: RunConfig, verifier: Verifier.Config, prompts: Sequence[Prompt], plan: Plan
) -> None:
    """Say so when a function is to compare with an answer that the prompts have not."""
    found, _ = judging_of(config, verifier, prompts)
    if any(each.refused for each in found):  # `plan_answers` says so
        return
    lacking = [p for p, each in zip(prompts, found, strict=True) if each.lacks_answer]
    if not lacking:
        return
    plan.add(
        f"{LINE}{verifier.source}",
        explain(
            f"a parameter gets the answer, and {len(lacking)} of {len(prompts)} prompts have none: it would be None",
            value=lacking[0].id,
            where="the answer column of the prompt source (columns.answer)",
            fix="map the column that holds the answer, or say which column the parameter gets: "
            "`arguments: {PARAMETER: COLUMN}`, or leave the parameter out",
        ),
        "problem" if len(lacking) == len(prompts) else "warning",
    )
