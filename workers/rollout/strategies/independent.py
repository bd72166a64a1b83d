"""Sample each attempt on its own: one policy turn per trajectory, all requests of a shard in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from policies.records import Prompt, StopReason, Trajectory, TrajectoryStatus, Turn
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine
from workers.rollout.strategy import RolloutJob, RolloutStrategy


class Independent(RolloutStrategy):
    """K independent samples of each prompt."""

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        rendered = {p.id: engine.render(p.messages, p.tools) for p in job.prompts}
        slots = [(p, k) for p in job.prompts for k in range(job.samples_per_prompt)]
        requests = [
            GenerationRequest(rendered[p.id], job.sampling, job.seed_of(p, k)) for p, k in slots
        ]
        generations = engine.generate(requests)
        return [
            _trajectory(job, prompt, index, rendered[prompt.id], generation, engine)
            for (prompt, index), generation in zip(slots, generations, strict=True)
        ]


def _trajectory(
    job: RolloutJob,
    prompt: Prompt,
    index: int,
    prompt_token_ids: tuple[int, ...],
    generation: Generation,
    engine: RolloutEngine,
) -> Trajectory:
    truncated = generation.stop_reason is StopReason.LENGTH
    return Trajectory(
        id=job.trajectory_id(prompt, index),
        prompt_id=prompt.id,
        sample_index=index,
        policy_version=engine.serving.number,
        policy_digest=engine.serving.digest,
        prompt_token_ids=prompt_token_ids,
        turns=(
            Turn(
                role="policy",
                token_ids=generation.token_ids,
                text=generation.text,
                logprobs=generation.logprobs,
                stop_reason=generation.stop_reason,
            ),
        ),
        status=TrajectoryStatus.TRUNCATED if truncated else TrajectoryStatus.COMPLETE,
        sampling=job.sampling,
    )
