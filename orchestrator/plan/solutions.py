"""The part of the preflight that lets verifiers judge the solutions which prompts bring: each must be scored 1.

Tests that the known solution fails would teach the opposite of the task, and nothing in a run would show it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from orchestrator.config.plug_ins.asked import judging_of
from orchestrator.config.run_config import RunConfig
from orchestrator.plan.lines import Plan
from policies.base.errors import PawlError
from policies.base.records import (
    Prompt,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.verifier import Verifier

NUM_SHOWN = 3
NUM_IDS = 20


def plan_solutions(
    config: RunConfig,
    plan: Plan,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    *,
    elsewhere: bool,
) -> None:
    """Judge every reference solution in the verifier's own process, and say which fail and which were not tried.

    Failing ones are a problem when they are a larger share than `limits.max_verdict_errors` allows, else a warning.

    Args:
        config: what would run.
        plan: where the lines go.
        train: training prompts.
        held_out: held-out prompts.
        elsewhere: the run is for another machine: nothing is judged here.
    """
    deadline = time.monotonic() + config.limits.solution_seconds
    for name, verifiers, prompts in (
        ("prompts.train", config.verifiers, train),
        ("prompts.held_out", config.evaluation_verifiers, held_out),
    ):
        for verifier in verifiers:
            known = _solutions(config, verifier, prompts)
            if not known:
                continue
            if elsewhere or not config.limits.solution_seconds:
                reason = "another machine" if elsewhere else "limits.solution_seconds is 0"
                plan.add(name, f"{len(known)} reference solutions, not judged: {reason}")
                continue
            verdicts = _judge(verifier, known, deadline)
            _report(config, plan, name, verifier, known, verdicts)


def _solutions(
    config: RunConfig, verifier: Verifier.Config, prompts: Sequence[Prompt]
) -> list[tuple[Prompt, str]]:
    """Prompts that bring a solution, with the completion that must be scored 1."""
    if verifier.level == "step":
        return []
    try:
        found, _ = judging_of(config, verifier, prompts)
    except PawlError:  # `plan_answers` reports a verifier that cannot be made
        return []
    return [
        (prompt, each.solution)
        for prompt, each in zip(prompts, found, strict=True)
        if each.solution is not None
    ]


def _judge(
    config: Verifier.Config, known: Sequence[tuple[Prompt, str]], deadline: float
) -> list[Verdict]:
    """Verdicts in order, as many as there is time for; at least one."""
    verdicts: list[Verdict] = []
    with IsolatedVerifier(config) as verifier:
        for prompt, completion in known:
            verdicts.append(verifier.verify(prompt, _as_trajectory(prompt, completion)))
            if verifier.start_failure or time.monotonic() > deadline:
                break
    return verdicts


def _report(
    config: RunConfig,
    plan: Plan,
    name: str,
    verifier: Verifier.Config,
    known: Sequence[tuple[Prompt, str]],
    verdicts: Sequence[Verdict],
) -> None:
    failed = [
        (prompt.id, verdict)
        for (prompt, _), verdict in zip(known, verdicts, strict=False)  # time may have run out
        if verdict.score != 1.0
    ]
    if failed:
        ids = ", ".join(prompt_id for prompt_id, _ in failed[:NUM_IDS])
        why = "".join(f"\n  {i}: {_why(verdict)}" for i, verdict in failed[:NUM_SHOWN])
        plan.add(
            name,
            f"{len(failed)} of {len(verdicts)} reference solutions are not scored 1 by {verifier.source} "
            f"(got {ids}{', ...' if len(failed) > NUM_IDS else ''}). Set by: the tests and the solutions of {name}. "
            f"Fix: correct the tests or the solutions of these prompts, or leave the prompts out:{why}",
            "problem"
            if len(failed) > config.limits.max_verdict_errors * len(verdicts)
            else "warning",
        )
    else:
        plan.add(name, f"{len(verdicts)} reference solutions are scored 1 by {verifier.source}")
    if len(verdicts) < len(known):
        plan.add(
            name,
            f"{len(known) - len(verdicts)} of {len(known)} reference solutions were not judged by {verifier.source} "
            f"within limits.solution_seconds ({config.limits.solution_seconds:g}). Fix: raise it to judge all",
            "warning",
        )


def _why(verdict: Verdict) -> str:
    if verdict.status is VerdictStatus.ERROR:
        return str(verdict.error)
    return verdict.rationale or f"scored {verdict.score}"


def _as_trajectory(prompt: Prompt, completion: str) -> Trajectory:
    """The solution as if a policy had written it, without tokens."""
    return Trajectory(
        id=f"solution.{prompt.id}",
        prompt_id=prompt.id,
        sample_index=0,
        policy_version=0,
        policy_digest="",
        prompt_token_ids=(),
        turns=(Turn(role="policy", token_ids=(), text=completion, stop_reason=StopReason.STOP),),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
    )
