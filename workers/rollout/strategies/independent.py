"""Sample each attempt on its own: one policy turn per trajectory, all requests of a shard in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.records import Ending, Prompt, StopReason, Trajectory, TrajectoryStatus, Turn
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine
from workers.rollout.strategy import RolloutJob, RolloutStrategy


class Independent(RolloutStrategy):
    """K independent samples of each prompt."""

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        rendered = {p.id: engine.render(p.messages, p.tools) for p in job.prompts}
        slots = [(p, k) for p in job.prompts for k in job.sample_indices]
        limit = engine.max_context
        fitting = [(p, k) for p, k in slots if limit is None or len(rendered[p.id]) < limit]
        requests = [
            GenerationRequest(rendered[p.id], job.sampling, job.seed_of(p, k)) for p, k in fitting
        ]
        answers = dict(zip([(p.id, k) for p, k in fitting], engine.generate(requests), strict=True))
        return [
            _trajectory(
                job, prompt, index, rendered[prompt.id], answers.get((prompt.id, index)), engine
            )
            for prompt, index in slots
        ]


def _trajectory(
    job: RolloutJob,
    prompt: Prompt,
    index: int,
    prompt_token_ids: tuple[int, ...],
    said: Generation | None,
    engine: RolloutEngine,
) -> Trajectory:
    """The record of one attempt; without an answer, of a prompt that does not fit the engine."""
    status, ending, error = TrajectoryStatus.COMPLETE, Ending.ANSWERED, None
    turns: tuple[Turn, ...] = ()
    if said is None:
        status, ending = TrajectoryStatus.ERROR, Ending.FAILED
        size, limit = len(prompt_token_ids), engine.max_context
        error = f"the prompt has {size} tokens, the engine takes {limit} in all"
    elif said.error is not None:
        status, ending, error = TrajectoryStatus.ERROR, Ending.FAILED, said.error
    else:
        if said.stop_reason is StopReason.LENGTH:
            status, ending = TrajectoryStatus.TRUNCATED, Ending.TOKEN_LIMIT
        turns = (
            Turn(
                role="policy",
                token_ids=said.token_ids,
                text=said.text,
                logprobs=said.logprobs,
                stop_reason=said.stop_reason,
            ),
        )
    return Trajectory(
        id=job.trajectory_id(prompt, index),
        prompt_id=prompt.id,
        sample_index=index,
        policy_version=engine.serving.number,
        policy_digest=engine.serving.digest,
        prompt_token_ids=prompt_token_ids,
        turns=turns,
        status=status,
        sampling=job.sampling,
        ending=ending,
        error=error,
    )
