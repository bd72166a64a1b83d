"""The evaluate phase: the held-out measurement of one policy version, and further measurements of a round.

*Consumes* held-out prompts and the version to measure. *Produces* trajectories, verdicts and feedback under
`evaluate/` (or `again-*/`, `final/`, `test/`), what came of each prompt's attempts, and the metrics made of it: pass@1,
pass@k, their standard errors, length, truncation, entropy. *On failure*: as collect; attempts that could not be graded
are kept apart and counted, and a measurement that lacks too many of them is not acted on (`limits.max_unmeasured`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.acceptance.measurement import PromptCounts
from orchestrator.flow.fingerprint import input_digests
from orchestrator.flow.shard_task import ShardWork
from orchestrator.flow.task import Summary
from orchestrator.rounds.collecting import digests, rollout_work, run_on_shards, totals, verify_work
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.drawing import repair_prompts, write_measured_prompts
from orchestrator.rounds.limits import check_collection
from orchestrator.rounds.measured_numbers import measured_numbers
from orchestrator.rounds.metrics import conversation_metrics
from orchestrator.runs.folder import RoundFolder, ShardPaths
from orchestrator.runs.phases import Evaluated, Phase, Remeasured
from policies.base.errors import ArtifactError
from policies.base.records import PolicyVersion
from policies.storage.artifacts import discard, read_marker
from workers.cluster.item_filter import ItemFilter


def evaluate(scope: RoundScope, version: PolicyVersion) -> Evaluated:
    """Sample the held-out prompts with `version`, grade them, and measure."""
    repair_prompts(scope)
    return _measure(scope, version, scope.folder.evaluation, f"e{scope.index}", Phase.EVALUATE)


def measure_again(scope: RoundScope, versions: Sequence[int]) -> Remeasured:
    """Measure versions on the held-out prompts once more, with samples of their own."""
    found: dict[str, Evaluated] = {}
    for number in versions:
        name = f"again-{number:04d}"
        folder = scope.folder.measurement(name)
        write_measured_prompts(scope, folder, scope.run.held_out_prompts)
        version, prefix = scope.run.store.get(number), f"e{scope.index}v{number}"
        found[name] = _measure(scope, version, folder, prefix, Phase.COMPARE)
    return Remeasured(measurements=found)


def measure_finally(scope: RoundScope, version: PolicyVersion) -> Remeasured:
    """Measure `version` where no decision looks: on `prompts.test`, or else on the held-out prompts once more."""
    test = scope.run.test_prompts
    name = "test" if test else "final"
    folder = scope.folder.measurement(name)
    write_measured_prompts(scope, folder, test or scope.run.held_out_prompts)
    measured = _measure(scope, version, folder, f"{name[0]}{scope.index}", Phase.FINAL)
    return Remeasured(measurements={name: measured})


def num_shards(scope: RoundScope) -> int:
    """Shards of held-out prompts."""
    return -(-len(scope.run.held_out_prompts) // scope.run.config.rollout.prompts_per_shard)


def _measure(
    scope: RoundScope, version: PolicyVersion, folder: RoundFolder, prefix: str, phase: Phase
) -> Evaluated:
    run = scope.run
    work = [
        rollout_work(
            run,
            version,
            samples=run.config.evaluation.samples_per_prompt,
            sampling=run.config.evaluation_sampling,
            prefix=prefix,
        ),
        verify_work(
            run.groups.grade,
            [*run.config.evaluation_verifiers, run.config.evaluation_feedback],
            run.plug_ins,
        ),
        _grade_work(scope),
    ]
    shards = [folder.shard(i) for i in range(len(folder.prompt_shards()))]
    for shard in shards:
        _grade_anew(shard, scope.run.fence)
    summaries = run_on_shards(scope, work, shards, phase=phase.value)
    check_collection(run, scope.index, totals(summaries), summaries)
    return Evaluated(
        version=version.number,
        digests=digests(folder, ["trajectories", "verdicts", "feedback"]),
        metrics=metrics_of(summaries["rollout"], summaries["grade"])
        | {f"eval/{name}": value for name, value in measured_numbers(scope, summaries).items()},
        counts=counts_of(summaries["grade"]),
    )


def _grade_work(scope: RoundScope) -> ShardWork:
    def arguments(s: ShardPaths, attempt: ShardPaths, item_filter: ItemFilter) -> tuple[Any, ...]:
        return (
            str(s.of("trajectories")),
            str(s.prompts),
            str(s.of("verdicts")),
            None,
            str(attempt.of("feedback")),
        )

    metrics = scope.run.config.metrics
    return ShardWork(
        name="grade",
        group=scope.run.groups.grade,
        method="grade",
        arguments=arguments,
        writes=("feedback",),
        reads=("trajectories", "verdicts"),
        input_digests=input_digests(
            [scope.run.config.evaluation_feedback, *metrics], plug_ins=scope.run.plug_ins
        ),
        after=("verify",),
    )


def _grade_anew(shard: ShardPaths, guard: Callable[[], None]) -> None:
    """Take back what an older Pawl graded, which did not count by prompt; the samples and verdicts stay."""
    feedback = shard.of("feedback")
    with contextlib.suppress(ArtifactError):  # damaged: the scheduler sets it aside
        marker = read_marker(feedback)
        if marker is not None and "by_prompt" not in marker.summary:
            discard(feedback, guard)


def counts_of(grades: Sequence[Summary]) -> PromptCounts:
    """Return what came of each prompt's attempts, over all shards in order."""
    columns: dict[str, list[float]] = {name: [] for name in PromptCounts.model_fields}
    for summary in grades:
        for name, column in columns.items():
            column += summary["by_prompt"][name]
    return PromptCounts.model_validate({name: tuple(column) for name, column in columns.items()})


def metrics_of(rollouts: Sequence[Summary], grades: Sequence[Summary]) -> dict[str, float]:
    """Held-out metrics from the shards' sums and what they counted by prompt."""
    total = totals({"rollout": rollouts, "grade": grades})
    trajectories = max(total.get("rollout/trajectories", 0.0), 1.0)
    tokens = max(total.get("rollout/tokens", 0.0), 1.0)
    found = counts_of(grades).metrics()
    found["eval/length_tokens"] = tokens / trajectories
    found["eval/truncated_share"] = total.get("rollout/truncated", 0.0) / trajectories
    found["eval/entropy"] = total.get("rollout/negative_logprob", 0.0) / tokens
    found |= conversation_metrics(total, "eval")
    return dict(sorted(found.items()))
