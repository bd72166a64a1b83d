"""The evaluate phase: the held-out measurement of one policy version.

*Consumes* the held-out prompts and the version to measure. *Produces* trajectories, verdicts and feedback
under `evaluate/` and the metrics pass@1, pass@k, length, truncation, entropy. *On failure*: as collect;
attempts that cannot be graded are left out of the averages and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.inputs import made_from
from orchestrator.rounds.collecting import digests, pipeline, rollout_stage, totals, verify_stage
from orchestrator.rounds.drawing import mend_prompts
from orchestrator.rounds.limits import check_collection
from orchestrator.rounds.metrics import conversation_metrics
from orchestrator.rounds.phases import Evaluated
from orchestrator.rounds.pipeline import Stage, Summary
from orchestrator.run import RoundScope
from orchestrator.run_folder import ShardPaths
from policies.records import PolicyVersion
from workers.portion import Portion


def evaluate(scope: RoundScope, version: PolicyVersion) -> Evaluated:
    """Sample the held-out prompts with `version`, grade them, and measure."""
    run, folder = scope.run, scope.folder.evaluation
    mend_prompts(scope)
    stages = [
        rollout_stage(
            run,
            version,
            samples=run.config.evaluation.samples_per_prompt,
            sampling=run.config.evaluation_sampling,
            prefix=f"e{scope.index}",
        ),
        verify_stage(run.groups.grade, [*run.config.evaluation_verifiers, run.config.feedback]),
        _grade_stage(scope),
    ]
    shards = [folder.shard(i) for i in range(num_shards(scope))]
    summaries = pipeline(scope, stages, phase="evaluate").run(shards)
    check_collection(run, scope.index, totals(summaries), summaries)
    return Evaluated(
        version=version.number,
        digests=digests(folder, ["trajectories", "verdicts", "feedback"]),
        metrics=metrics_of(summaries["rollout"], summaries["grade"]),
    )


def num_shards(scope: RoundScope) -> int:
    """Shards of held-out prompts."""
    return -(-len(scope.run.held_out_prompts) // scope.run.config.rollout.prompts_per_shard)


def _grade_stage(scope: RoundScope) -> Stage:
    def arguments(s: ShardPaths, attempt: ShardPaths, portion: Portion) -> tuple[Any, ...]:
        return (
            str(s.of("trajectories")),
            str(s.prompts),
            str(s.of("verdicts")),
            None,
            str(attempt.of("feedback")),
        )

    return Stage(
        name="grade",
        group=scope.run.groups.grade,
        method="grade",
        arguments=arguments,
        writes=("feedback",),
        reads=("trajectories", "verdicts"),
        made_from=made_from([scope.run.config.feedback]),
        after=("verify",),
    )


def metrics_of(rollouts: Sequence[Summary], grades: Sequence[Summary]) -> dict[str, float]:
    """Held-out metrics from the shards' sums.

    pass@k is the mean over prompts of the unbiased estimate 1 - C(n-c, k) / C(n, k) for c right among n
    (Chen et al., arXiv 2107.03374, eq. 1); the shards hold its sum for each k.
    """
    total = totals({"rollout": rollouts, "grade": grades})
    prompts = total.get("grade/prompts", 0.0)
    trajectories = max(total.get("rollout/trajectories", 0.0), 1.0)
    tokens = max(total.get("rollout/tokens", 0.0), 1.0)
    found: dict[str, float] = {}
    for name, value in total.items():
        if name.startswith("grade/pass_at/") and name.endswith("/sum"):
            k = name.split("/")[2]
            measured = total[f"grade/pass_at/{k}/prompts"]
            if measured:
                found[f"eval/pass@{k}"] = value / measured
    graded = total.get("grade/desirable", 0.0) + total.get("grade/undesirable", 0.0)
    if graded:
        found["eval/score"] = total["grade/score_sum"] / graded
    found["eval/prompts"] = prompts
    found["eval/unusable_share"] = total.get("grade/unusable", 0.0) / trajectories
    found["eval/length_tokens"] = tokens / trajectories
    found["eval/truncated_share"] = total.get("rollout/truncated", 0.0) / trajectories
    found["eval/entropy"] = total.get("rollout/negative_logprob", 0.0) / tokens
    found |= conversation_metrics(total, "eval")
    return dict(sorted(found.items()))
