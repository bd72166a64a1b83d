"""The verify worker: judges shards, builds preference examples from them, and grades evaluations.

A plain class that an actor hosts. Every method reads finished files, writes drafts on paths that no other attempt
uses (see `policies.storage.artifacts`), and answers with them and a summary under 1 KB of sums and counts; the driver
commits the drafts, and divides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.base.component import create
from policies.base.errors import (
    ArtifactError,
    ConfigurationError,
    VerificationError,
    explain,
)
from policies.base.records import (
    Comparison,
    Feedback,
    Prompt,
    ScoredGroup,
    Trajectory,
    TrajectoryStatus,
    Verdict,
    VerdictStatus,
)
from policies.base.source_scores import spread
from policies.examples.builder import PreferenceBuilder, merge_counts
from policies.storage.artifacts import Written, read_marker, read_records, write_draft
from workers.build_examples.example_counts import count_examples
from workers.build_examples.scored_group import build_examples, is_uniform
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.scoring.aggregate import aggregate
from workers.scoring.by_prompt import count_by_prompt
from workers.scoring.feedback_settings import FeedbackSettings
from workers.scoring.graded_parts import parts_to_grade, verdict_on
from workers.scoring.metric import Metric, measured
from workers.verify.consistency import contradicting
from workers.verify.isolated_verifier import IsolatedVerifier
from workers.verify.source_summary import Summary, summarise_source, within_budget
from workers.verify.verifier import Verifier


class VerifyWorker:
    """Holds one isolated process per verifier for as long as it lives."""

    def __init__(
        self,
        verifiers: Sequence[Verifier.Config],
        feedback: FeedbackSettings,
        preferences: Sequence[PreferenceBuilder.Config] = (),
        weights: Mapping[str, float] | None = None,
        *,
        held_out: FeedbackSettings | None = None,
        metrics: Sequence[Metric.Config] = (),
    ) -> None:
        """Take settings; processes start with the first trajectory.

        Args:
            verifiers: may be empty where judges alone decide.
            feedback: threshold and treatment of errors.
            preferences: builders by stage of the run; needed by `prefer` only.
            weights: share by source, judges included; verifiers' own weights where a source is left out.
            held_out: the same as `feedback` for held-out attempts; None takes it.
            metrics: what is measured of scored attempts besides.
        """
        self._feedback, self._held_out = feedback, held_out or feedback
        self._weights = {v.source: v.weight for v in verifiers} | dict(weights or {})
        self._verifiers = [IsolatedVerifier(config) for config in verifiers]
        self._builders: list[PreferenceBuilder] = [create(config) for config in preferences]
        self._metrics: list[Metric] = [create(config) for config in metrics]
        self._prompts: tuple[str, dict[str, Prompt]] = ("", {})

    def close(self) -> None:
        """Kill the verifiers' processes."""
        for verifier in self._verifiers:
            verifier.close()

    def verify(
        self,
        trajectories_path: str,
        prompts_path: str,
        output_path: str,
        item_filter: ItemFilter = WHOLE,
    ) -> Written:
        """Let every verifier judge every trajectory that was sampled, or every step of it; write the verdicts.

        Trajectories whose rollout failed have nothing to judge and get no verdict; those that `item_filter` skips get
        errors. Verdicts come by trajectory, then by verifier, then by step.

        Raises:
            VerificationError: a verifier does not start here; nothing is written, for it says nothing about the shard.
        """
        groups = self._groups(trajectories_path, prompts_path)
        items = [
            (prompt, trajectory)
            for prompt, trajectories in groups
            for trajectory in trajectories
            if trajectory.status is not TrajectoryStatus.ERROR
        ]
        by_verifier, inconsistent = self._ask(
            [item for item in items if item_filter.takes(item[1].id)]
        )
        for verifier in self._verifiers:
            if verifier.start_failure:
                raise VerificationError(verifier.start_failure)
        skipped = [t for _, t in items if t.id in item_filter.skip]
        for verifier, of_one in zip(self._verifiers, by_verifier, strict=True):
            of_one += [_not_judged(verifier.config.source, t) for t in skipped]
        place = {trajectory.id: index for index, (_, trajectory) in enumerate(items)}
        verdicts = [verdict for of_one in by_verifier for verdict in of_one]
        verdicts.sort(key=lambda verdict: place[verdict.trajectory_id])
        feedback = [f for group in self._score(groups, verdicts, ()) for f in group.feedback]
        summary = within_budget(
            {
                "trajectories": sum(len(trajectories) for _, trajectories in groups),
                **_count_desirable(feedback),
                **({"quarantined": len(skipped)} if skipped else {}),
                "sources": {
                    v.config.source: summarise_source(of_one)
                    | ({"fickle": 1} if v in inconsistent else {})
                    for v, of_one in zip(self._verifiers, by_verifier, strict=True)
                },
            }
        )
        draft = write_draft(Path(output_path), Verdict, verdicts)
        return Written(files=(draft,), summary=summary)

    def _ask(
        self, items: Sequence[tuple[Prompt, Trajectory]]
    ) -> tuple[list[list[Verdict]], list[IsolatedVerifier]]:
        """Verdicts by verifier, and those that contradict themselves; all verifiers work side by side."""
        asked = []
        for verifier in self._verifiers:
            level = verifier.config.level
            parts = [(p, part) for p, t in items for part in parts_to_grade(t, level)]
            asked.append((level, parts, verifier.submit(parts)))
        answers = [future.result() for _, _, future in asked]
        found = [
            [verdict_on(p, v, level) for (_, p), v in zip(parts, of_one, strict=True)]
            for (level, parts, _), of_one in zip(asked, answers, strict=True)
        ]
        return found, contradicting(self._verifiers, [parts for _, parts, _ in asked], answers)

    def prefer(
        self,
        trajectories_path: str,
        prompts_path: str,
        verdicts_path: str | None,
        judgement_paths: tuple[str, str] | None,
        output_path: str,
        seed: int,
        scope: str,
        feedback_path: str | None = None,
        stage: int = 0,
    ) -> Written:
        """Build the preference examples of a shard; write them, and the feedback beside them.

        Args:
            trajectories_path: the shard.
            prompts_path: a file that holds at least its prompts.
            verdicts_path: what `verify` wrote; None where judges alone decide.
            judgement_paths: verdicts and comparisons of the judges, if there are any.
            output_path: where the examples go.
            seed: the run's seed.
            scope: what the random choices are for, e.g. `r3`; with it and the prompt id they repeat.
            feedback_path: where the feedback goes; `<output_path stem>.feedback.parquet` by default.
            stage: which builder: index of the stage that the round belongs to.
        """
        builder = self._builder_of(stage)
        output = Path(output_path)
        groups = self._groups(trajectories_path, prompts_path)
        verdicts = _read_all(Verdict, verdicts_path, judgement_paths and judgement_paths[0])
        comparisons = _read_all(Comparison, judgement_paths and judgement_paths[1])
        scored = self._score(groups, verdicts, comparisons)
        built = [build_examples(builder, group, seed, scope) for group in scored]
        examples = [example for of_one in built for example in of_one.examples]
        feedback = [f for group in scored for f in group.feedback]
        summary = within_budget(
            {
                "prompts": len(scored),
                "prompts_with_example": sum(bool(of_one.examples) for of_one in built),
                "prompts_all_right": sum(is_uniform(group, desirable=True) for group in scored),
                "prompts_all_wrong": sum(is_uniform(group, desirable=False) for group in scored),
                "trajectories": len(feedback),
                **_count_desirable(feedback),
                "examples": len(examples),
                **count_examples(examples),
                **_sum_spread(feedback),
                "dropped": merge_counts([of_one.dropped for of_one in built]),
            }
        ) | measured(self._metrics, scored)
        kept = Path(feedback_path or output.with_name(f"{output.stem}.feedback.parquet"))
        drafts = (
            write_draft(output, builder.kind, examples),
            write_draft(kept, Feedback, feedback),
        )
        return Written(files=drafts, summary=summary)

    def grade(
        self,
        trajectories_path: str,
        prompts_path: str,
        verdicts_path: str | None,
        judgement_path: str | None,
        output_path: str,
    ) -> Written:
        """Count what an evaluation needs; write the feedback.

        `by_prompt` holds a few numbers for each prompt of the shard, in order (so the summary of a large shard is
        above 1 KB): attempts that were asked for, those that something graded, and among these the right ones, the
        sum of their scores, those that ended by themselves, and the right ones of these. What the policy did wrong is
        graded and wrong; what nothing graded (`unusable`) is our failure, and is kept apart.
        """
        groups = self._groups(trajectories_path, prompts_path)
        verdicts = _read_all(Verdict, verdicts_path, judgement_path)
        scored = self._score(groups, verdicts, (), self._held_out)
        feedback = [f for group in scored for f in group.feedback]
        sampled = [
            t
            for group in scored
            for t in group.trajectories
            if t.status is not TrajectoryStatus.ERROR
        ]
        turns = [turn for t in sampled for turn in t.turns if turn.role == "policy"]
        summary = {
            "prompts": len(scored),
            "samples": len(feedback),
            **_count_desirable(feedback),
            "by_prompt": count_by_prompt(scored),
            "policy_tokens": sum(t.num_policy_tokens for t in sampled),
            "truncated": sum(t.status is TrajectoryStatus.TRUNCATED for t in sampled),
            "neg_logprob_sum": -math.fsum(p for turn in turns for p in turn.logprobs),
            "logprob_tokens": sum(len(turn.logprobs) for turn in turns),
            **measured(self._metrics, scored),
        }
        draft = write_draft(Path(output_path), Feedback, feedback)
        return Written(files=(draft,), summary=summary)

    def _builder_of(self, stage: int) -> PreferenceBuilder:
        if not self._builders:
            raise ConfigurationError(
                explain(
                    "this worker has no preference builder",
                    value=None,
                    where="preferences",
                    fix="set preferences.type, e.g. right_vs_wrong",
                )
            )
        return self._builders[stage]

    def _groups(
        self, trajectories_path: str, prompts_path: str
    ) -> list[tuple[Prompt, list[Trajectory]]]:
        prompts = self._read_prompts(prompts_path)
        groups: dict[str, list[Trajectory]] = {}
        for trajectory in read_records(Path(trajectories_path), Trajectory):
            groups.setdefault(trajectory.prompt_id, []).append(trajectory)
        if unknown := [prompt_id for prompt_id in groups if prompt_id not in prompts]:
            raise ArtifactError(
                f"{trajectories_path} holds trajectories of prompts that {prompts_path} has not: "
                f"{', '.join(unknown[:3])}. Fix: pass the prompt file of the same round"
            )
        return [(prompts[prompt_id], group) for prompt_id, group in groups.items()]

    def _read_prompts(self, path: str) -> dict[str, Prompt]:
        marker = read_marker(Path(path))
        key = f"{path} {marker.sha256 if marker else ''}"
        if self._prompts[0] != key:  # one prompt file serves all shards of a round
            self._prompts = (key, {p.id: p for p in read_records(Path(path), Prompt)})
        return self._prompts[1]

    def _score(
        self,
        groups: Sequence[tuple[Prompt, Sequence[Trajectory]]],
        verdicts: Sequence[Verdict],
        comparisons: Sequence[Comparison],
        feedback: FeedbackSettings | None = None,
    ) -> list[ScoredGroup]:
        prompt_of = {t.id: prompt.id for prompt, trajectories in groups for t in trajectories}
        verdicts_of: dict[str, list[Verdict]] = {prompt.id: [] for prompt, _ in groups}
        comparisons_of: dict[str, list[Comparison]] = {prompt.id: [] for prompt, _ in groups}
        for verdict in verdicts:
            verdicts_of[_prompt_id(prompt_of, verdict.trajectory_id)].append(verdict)
        for comparison in comparisons:
            comparisons_of[_prompt_id(prompt_of, comparison.first)].append(comparison)
        return [
            aggregate(
                prompt,
                trajectories,
                verdicts_of[prompt.id],
                comparisons_of[prompt.id],
                feedback or self._feedback,
                self._weights,
            )
            for prompt, trajectories in groups
        ]


def _prompt_id(prompt_of: Mapping[str, str], trajectory_id: str) -> str:
    if trajectory_id not in prompt_of:
        raise ArtifactError(
            f"a verdict or comparison is about trajectory {trajectory_id!r}, which is not in the shard. "
            "Fix: delete the verdict files of this shard and their markers; they are then made again"
        )
    return prompt_of[trajectory_id]


def _not_judged(source: str, trajectory: Trajectory) -> Verdict:
    return Verdict(
        source=source,
        trajectory_id=trajectory.id,
        status=VerdictStatus.ERROR,
        error=ItemFilter.reason("the trajectory"),
    )


def _read_all(kind: type[Any], *paths: str | None) -> list[Any]:
    return [record for path in paths if path for record in read_records(Path(path), kind)]


def _count_desirable(feedback: Sequence[Feedback]) -> Summary:
    counts = Counter(f.desirable for f in feedback)
    steps = [step.desirable for f in feedback for step in f.steps]
    return {
        **({"steps": len(steps), "steps_desirable": sum(steps)} if steps else {}),
        "desirable": counts[True],
        "undesirable": counts[False],
        "unusable": counts[None],
        "score_sum": math.fsum(f.score for f in feedback if f.score is not None),
    }


def _sum_spread(feedback: Sequence[Feedback]) -> Summary:
    """Sum of the distances between sources, and how many attempts two of them scored; empty where none has two."""
    found = [d for f in feedback if f.score is not None and (d := spread(f)) is not None]
    return {"spread_sum": math.fsum(found), "spreads": len(found)} if found else {}
