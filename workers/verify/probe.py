"""A try of a user's verifier before anything is sampled: made-up attempts at a real prompt, in the verifier's process.

What fails on every one of them, or leaves its range on any, would fail in the run as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from policies.base.errors import explain
from policies.base.records import (
    Prompt,
    Record,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
    Verdict,
    VerdictStatus,
)
from workers.verify.verifier import Verifier

NUM_WORDS_LONG = 24
MAX_TOKENS = 4096
"""A made-up attempt is not longer, whatever the run allows."""

Judge = Callable[[Verifier, Prompt, Sequence[Trajectory]], list[Verdict]]


class Probe(Record):
    """The result of a probe. Example: `Probe(assignment="completion <- completion", said="1, 0, 0, 0")`."""

    assignment: str = ""
    """Which parameter gets what; empty for a verifier that is no function."""
    said: str = ""
    """The scores, in the order of the attempts; `-` for no opinion, `error` for a failure."""
    problem: str = ""
    """Why the run must not start; empty where nothing speaks against it."""
    warning: str = ""
    failed: bool = False
    """The problem is that it raised, hung or died on everything; with another prompt it might not."""


def probe_attempts(prompt: Prompt, max_tokens: int) -> tuple[Trajectory, ...]:
    """Made-up attempts at `prompt`: the answer in a sentence, in tags after a thought, none, and a long one.

    Args:
        prompt: a real one.
        max_tokens: as many as an attempt of the run may have.
    """
    answer = _answer_text(prompt)
    long = " ".join(["so"] * NUM_WORDS_LONG)
    texts = (
        f"The answer is {answer}.",
        f"<think>\nLet me see.\n</think>\n<answer>{answer}</answer>\n\\boxed{{{answer}}}\n#### {answer}",
        "I do not know.",
        long,
    )
    lengths = (8, 24, 5, min(max_tokens, MAX_TOKENS))
    return tuple(
        _attempt(prompt, index, text, max(1, length))
        for index, (text, length) in enumerate(zip(texts, lengths, strict=True))
    )


def _answer_text(prompt: Prompt) -> str:
    """The answer, or the first value in one that is a list or a struct."""
    answer = prompt.answer
    while isinstance(answer, (list, dict)) and answer:
        answer = next(iter(answer.values())) if isinstance(answer, dict) else answer[0]
    return "42" if answer is None or isinstance(answer, (list, dict)) else str(answer)


def _attempt(prompt: Prompt, index: int, text: str, length: int) -> Trajectory:
    ids = tuple(range(10 + index, 10 + index + length))
    turn = Turn(
        role="policy",
        token_ids=ids,
        text=text,
        logprobs=(-1.0,) * length,
        stop_reason=StopReason.STOP,
    )
    return Trajectory(
        id=f"probe.{prompt.id}.{index}",
        prompt_id=prompt.id,
        sample_index=index,
        policy_version=0,
        policy_digest="",
        prompt_token_ids=(1,),
        turns=(turn,),
        status=TrajectoryStatus.COMPLETE,
        sampling=Sampling(),
        outcome=0.0,
    )


def probe(
    verifier: Verifier, prompt: Prompt, attempts: Sequence[Trajectory], judge: Judge
) -> Probe:
    """Judge the attempts as a run would, in one call where the verifier takes groups, and read what came of it.

    A verifier that takes one attempt at a time, or fails on all of them together, is asked about each until
    `timeout_seconds` have passed.

    Args:
        verifier: the verifier, prepared.
        prompt: a real prompt.
        attempts: made by `probe_attempts`.
        judge: gives verdicts and never raises.
    """
    started = time.monotonic()
    together = judge(verifier, prompt, attempts) if verifier.takes_groups else []
    broken = [v.error or "" for v in together if v.status is VerdictStatus.ERROR]
    apart = bool(broken) and len(broken) == len(together)  # then each alone may tell why
    verdicts = (
        together if together and not apart else _one_by_one(verifier, prompt, attempts, judge)
    )
    errors = [v.error or "" for v in verdicts if v.status is VerdictStatus.ERROR]
    found = Probe(assignment=verifier.described(prompt), said=", ".join(map(_said, verdicts)))
    failed = len(errors) == len(verdicts)
    problem = ""
    if time.monotonic() - started < verifier.config.timeout_seconds:
        problem = verifier.probe_problem(prompt, attempts, error=errors[0] if failed else "")
    failed = failed and not problem
    if failed:
        problem = _failure(verifier, prompt, f"each of {len(errors)} made-up attempts", errors[0])
    elif not problem and apart and not errors:
        problem = _failure(verifier, prompt, f"{len(attempts)} made-up attempts at once", broken[0])
    if problem:
        return found.model_copy(update={"problem": problem, "failed": failed})
    if errors:
        of_all = ", and with them on all attempts at the prompt" if apart else ""
        warning = f"fails on {len(errors)} of {len(verdicts)} made-up attempts{of_all}: {errors[0]}"
        return found.model_copy(update={"warning": warning})
    return found


def _failure(verifier: Verifier, prompt: Prompt, what: str, error: str) -> str:
    if "Set by: " in error:  # it has its four parts
        return f"on {what}, {error}"
    return explain(
        f"verifier {verifier.config.source!r} fails on {what}: {error}",
        value=f"prompt {prompt.id}",
        where=verifier.code,
        fix="correct it, or name another function",
    )


def _one_by_one(
    verifier: Verifier, prompt: Prompt, attempts: Sequence[Trajectory], judge: Judge
) -> list[Verdict]:
    """Verdicts on attempts alone, until `timeout_seconds` have passed; at least one."""
    deadline = time.monotonic() + verifier.config.timeout_seconds
    verdicts: list[Verdict] = []
    for attempt in attempts:
        verdicts += judge(verifier, prompt, [attempt])
        if time.monotonic() > deadline:
            break
    return verdicts


def _said(verdict: Verdict) -> str:
    if verdict.status is VerdictStatus.ERROR:
        return "error"
    return "-" if verdict.score is None else f"{verdict.score:.3g}"
