"""Limits at which failures stop a round, and rounds stop a run: one failure is a value, many are a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.sections import LimitSettings
from orchestrator.rounds.context import RoundScope, Run
from orchestrator.rounds.source_counts import count_sources
from policies.base.errors import LimitExceededError, explain
from policies.base.records import RoundResult, RoundStatus


def check_collection(
    run: Run,
    round_index: int,
    counts: Mapping[str, float],
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Stop the round when too many trajectories or verdicts failed; warn about every failure below that.

    Raises:
        LimitExceededError: a limit is passed; the message has the counts and the most common error.
    """
    limits = run.config.limits
    trajectories = counts.get("rollout/trajectories", 0.0)
    _check(
        run,
        round_index,
        what="trajectories ended in a rollout error",
        failed=counts.get("rollout/errors", 0.0),
        asked=trajectories,
        limit=limits.max_failed_trajectories,
        setting="limits.max_failed_trajectories",
        example="",
    )
    for each in count_sources(counts):
        _check(
            run,
            round_index,
            what=f"verdicts of {each.source} are errors",
            failed=each.errors,
            asked=each.asked,
            limit=limits.max_verdict_errors,
            setting="limits.max_verdict_errors",
            example=_example(summaries.get(each.stage, ()), each.source),
        )
        if each.inconsistent:
            run.events.warn(
                f"round {round_index}: {each.source}, asked again about the first trajectory of a shard, said "
                f"something else in {each.inconsistent:.0f} of {len(summaries.get(each.stage, ()))} shard(s): what is "
                "learned from it is partly chance. Fix: let it decide by its input alone (seed what is random in it)",
                round_index=round_index,
            )


def _check(
    run: Run,
    round_index: int,
    *,
    what: str,
    failed: float,
    asked: float,
    limit: float,
    setting: str,
    example: str,
) -> None:
    if not failed:
        return
    share = failed / max(asked, 1.0)
    text = f"round {round_index}: {failed:.0f} of {asked:.0f} {what}"
    if example:
        text += f"; most common: {example}"
    if share > limit:
        raise LimitExceededError(
            explain(
                text,
                value=round(share, 3),
                where=f"{setting} ({limit:g})",
                fix="mend the cause; `pawl show RUN_DIR --round N --feedback` lists each one; or raise the limit",
            )
        )
    run.events.warn(
        f"{text} (they are no score; see pawl show --feedback)", round_index=round_index
    )


def _example(summaries: Sequence[Mapping[str, Any]], source: str) -> str:
    """The first error text that a shard's summary carries for `source`."""
    for summary in summaries:
        sources = summary.get("sources", summary)  # judges name their sources at the top
        messages = sources.get(source, {}).get("top_errors", [])
        if messages:
            return str(messages[0][0])
    return ""


def reason_to_stop(results: Sequence[RoundResult], limits: LimitSettings) -> str | None:
    """Tell why no further round should be run, if so."""
    skipped = _streak(results, RoundStatus.SKIPPED)
    if skipped >= limits.max_skipped_rounds:
        return (
            f"{skipped} rounds in a row had too few examples (limits.max_skipped_rounds); "
            f"the last: {results[-1].reason}"
        )
    rejected = 0
    for result in reversed(results):
        if result.status is RoundStatus.REJECTED:
            rejected += 1
        elif result.status not in (RoundStatus.SKIPPED, RoundStatus.DIVERGED):
            break
    if rejected >= limits.max_rejected_rounds:
        return (
            f"{rejected} rounds in a row were rejected (limits.max_rejected_rounds); "
            f"version {results[-1].after} serves; the last: {results[-1].reason}"
        )
    diverged = _streak(results, RoundStatus.DIVERGED)
    if diverged >= limits.max_diverged_rounds:
        return (
            f"{diverged} rounds in a row diverged (limits.max_diverged_rounds); "
            f"version {results[-1].after} serves; the last: {results[-1].reason}"
        )
    return None


def is_last(scope: RoundScope, status: RoundStatus) -> bool:
    """Tell whether the run ends with this round, if it ends so."""
    run, policy = scope.run, scope.policy.number
    this = RoundResult(round=scope.index, status=status, before=policy, after=policy, reference="")
    results = [*run.journal.results(), this]
    return (
        scope.index >= run.config.rounds or reason_to_stop(results, run.config.limits) is not None
    )


def _streak(results: Sequence[RoundResult], status: RoundStatus) -> int:
    """Tell how many of the last rounds ended so, without another between them."""
    others = [place for place, result in enumerate(results) if result.status is not status]
    return len(results) - (others[-1] + 1 if others else 0)
