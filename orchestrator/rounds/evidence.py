"""Evidence on each version's held-out score, gathered from the journal: all measurements of a version, together.

A measurement that lacks too many attempts (`limits.max_unmeasured`) is left out: nothing is decided on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.acceptance.measurement import Evidence, Measurement
from orchestrator.rounds.context import RoundScope
from orchestrator.runs.phases import Evaluated, Phase, Remeasured
from policies.base.records import RoundStatus


def gather(scope: RoundScope, candidate: Evaluated, again: Iterable[Evaluated] = ()) -> Evidence:
    """The candidate of this round, the version that serves, and those that served before it.

    Args:
        scope: the round.
        candidate: its measurement.
        again: what was measured once more in this round.
    """
    by_version: dict[int, list[Evaluated]] = {}
    for each in [*_finished(scope), candidate, *again]:
        if usable(scope, each):
            by_version.setdefault(each.version, []).append(each)
    versions = dict.fromkeys([*scope.run.served(), scope.policy.number])
    known = {number: _together(number, by_version.get(number, [])) for number in versions}
    new = _together(candidate.version, by_version.get(candidate.version, [candidate]))
    serving = known.pop(scope.policy.number)
    earlier = {n: m for n, m in known.items() if m.metrics and n in _available(scope)}
    return Evidence(candidate=new, serving=serving, earlier=earlier)


def usable(scope: RoundScope, measured: Evaluated) -> bool:
    """Tell whether a measurement may be acted on: few enough of its attempts lack a score."""
    if measured.counts is None:
        return True
    limit = scope.run.config.limits.max_unmeasured
    has_any = bool(measured.counts.measured_prompts)
    return has_any and measured.counts.unmeasured_share <= limit


def why_unusable(scope: RoundScope, measured: Evaluated) -> str:
    """The reason not to act on a measurement, for the round's result."""
    counts = measured.counts
    assert counts is not None
    return (
        f"not decided: {counts.num_unmeasured} of {sum(counts.asked)} held-out attempts have no score because sampling "
        f"or grading failed ({counts.unmeasured_share:.3f}, limits.max_unmeasured is "
        f"{scope.run.config.limits.max_unmeasured:g}); the new policy is kept"
    )


def _finished(scope: RoundScope) -> Iterable[Evaluated]:
    journal = scope.run.journal
    for index in range(scope.index):
        measured = journal.find(index, Phase.EVALUATE, Evaluated)
        if measured is not None:
            yield measured
        again = journal.find(index, Phase.COMPARE, Remeasured)
        if again is not None:
            yield from again.measurements.values()


def _together(number: int, measured: list[Evaluated]) -> Measurement:
    counts = [m.counts for m in measured if m.counts is not None]
    if not measured:
        return Measurement(number, {}, None, 0)
    if not counts:
        return Measurement(number, measured[-1].metrics, None, len(measured))
    return Measurement.of(number, counts, measured[-1].metrics)


def _available(scope: RoundScope) -> set[int]:
    """Versions whose weights are there, so that they can serve again."""
    store = scope.run.store
    return {n for n in scope.run.served() if n == 0 or store.directory(n).is_dir()}


def rejected_in_a_row(scope: RoundScope) -> int:
    """Rejected rounds since the last accepted one; skipped and diverged rounds between them do not count."""
    number = 0
    for result in reversed(scope.run.journal.results()):
        if result.status is RoundStatus.REJECTED:
            number += 1
        elif result.status not in (RoundStatus.SKIPPED, RoundStatus.DIVERGED):
            break
    return number
