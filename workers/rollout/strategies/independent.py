"""Sample each attempt on its own: one policy turn per trajectory, all requests of a shard in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from policies.base.records import Prompt, Trajectory
from workers.rollout.attempts import FAILED, attempt_at, said_in_one_turn
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
    answer: Generation | None,
    engine: RolloutEngine,
) -> Trajectory:
    """The record of one attempt; without an answer, of a prompt that does not fit the engine."""
    said, error = FAILED, None
    if answer is None:
        size, limit = len(prompt_token_ids), engine.max_context
        error = f"the prompt has {size} tokens, the engine takes {limit} in all"
    elif answer.error is not None:
        error = answer.error
    else:
        said = said_in_one_turn(answer)
    return attempt_at(
        job,
        prompt,
        index,
        engine,
        prompt_token_ids=prompt_token_ids,
        error=error,
        **said._asdict(),
    )
