"""Answer, then revise the answer: two attempts on the same prompt, the second derived from the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from policies.base.component import Component
from policies.base.errors import PawlError
from policies.base.records import (
    Author,
    Message,
    Prompt,
    StopReason,
    Trajectory,
    TrajectoryStatus,
)
from policies.base.requirements import Requirements
from workers.rollout.attempts import FAILED, said_in_one_turn
from workers.rollout.chat.transcript import Transcript
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine
from workers.rollout.strategies.independent import Independent
from workers.rollout.strategy import RolloutJob, RolloutStrategy


@dataclass
class _Revision:
    """A revision on its way."""

    prompt: Prompt
    origin: Trajectory
    transcript: Transcript | None = None
    answer: Generation | None = None
    error: str | None = None


class Revise(RolloutStrategy):
    """Every second attempt is a revision of the one before it, written by the same policy.

    The policy reads its answer and is asked to revise it, after a critique of its own where one is asked for. What is
    kept is the revised answer on the original prompt's tokens, as if it had been the answer: its author is `edit`, it
    names its origin, and its log-probs are not known there, so the trainer scores it. `preferences: {type: revisions}`
    pairs the two. With an odd `rollout.samples_per_prompt` the last attempt is not revised. For a stage: held-out
    prompts are attempted with `rollout.strategy`.
    """

    measures_policy: ClassVar[bool] = False

    class Config(Component.Config):
        """Settings of `revise`."""

        critique: str | None = None
        """Instruction after the answer, to which the policy writes a critique; null asks for the revision at once."""
        instruction: str = Field(
            default="Check your answer and write it again, improved. Give the whole answer and nothing else.",
            min_length=1,
        )
        """Instruction to which the policy writes the revision; it must ask for an answer that stands by itself."""

        def requires(self) -> Requirements:
            """Nothing to load; it makes revisions."""
            return super().requires() + Requirements(revisions=True)

    config: Config

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        found: list[Trajectory] = []
        for offset in range(0, job.samples_per_prompt, 2):
            single = replace(job, samples_per_prompt=1, first_sample=job.first_sample + offset)
            found += Independent(self.config).run(single, engine)
        prompts = {prompt.id: prompt for prompt in job.prompts}
        last = job.sample_indices[-1]
        revisions = [_Revision(prompts[t.prompt_id], t) for t in found if t.sample_index < last]
        self._revise(job, revisions, engine)
        found += [_trajectory(job, revision) for revision in revisions]
        place = {prompt.id: index for index, prompt in enumerate(job.prompts)}
        return sorted(found, key=lambda t: (place[t.prompt_id], t.sample_index))

    def _revise(
        self, job: RolloutJob, revisions: Sequence[_Revision], engine: RolloutEngine
    ) -> None:
        instructions = [self.config.critique, self.config.instruction]
        for turn, text in enumerate(filter(None, instructions), start=1):
            requests = [_request(job, revision, text, turn, engine) for revision in revisions]
            asked = [(v, r) for v, r in zip(revisions, requests, strict=True) if r is not None]
            answers = engine.generate([request for _, request in asked])
            for (revision, _), answer in zip(asked, answers, strict=True):
                revision.answer, revision.error = answer, answer.error


def _request(
    job: RolloutJob, revision: _Revision, text: str, turn: int, engine: RolloutEngine
) -> GenerationRequest | None:
    """Go on with the conversation of a revision; None, with the error kept, where that cannot be."""
    if revision.error is not None:
        return None
    prompt, origin = revision.prompt, revision.origin
    try:
        if revision.transcript is None:
            if origin.status is TrajectoryStatus.ERROR:
                revision.error = f"its origin {origin.id} failed: {origin.error}"
                return None
            revision.transcript = Transcript(
                engine.chat, prompt.messages, prompt.tools, rewritten_history="keep"
            )
            said = origin.turns[0]
            revision.transcript.said(said.token_ids, said.text)
        elif revision.answer is not None:
            revision.transcript.said(revision.answer.token_ids, revision.answer.text)
        revision.transcript.observed((Message(role="user", content=text),))
    except PawlError as failure:
        revision.error = str(failure)
        return None
    ids, limit = tuple(revision.transcript.token_ids), engine.max_context
    if limit is not None and len(ids) >= limit:
        revision.error = (
            f"the conversation up to the revision has {len(ids)} tokens, the engine takes {limit}"
        )
        return None
    index = origin.sample_index + 1
    return GenerationRequest(ids, job.sampling, job.seed_of(prompt, index, turn))


def _trajectory(job: RolloutJob, revision: _Revision) -> Trajectory:
    """The revised answer, on the original prompt's tokens."""
    origin, answer, error = revision.origin, revision.answer, revision.error
    if error is None and (answer is None or answer.stop_reason is StopReason.ERROR):
        error = "the engine broke the revision off"
    said = FAILED
    if error is None and answer is not None:
        said = said_in_one_turn(answer, scored=False)
    index = origin.sample_index + 1
    return origin.model_copy(
        update={
            "id": job.trajectory_id(revision.prompt, index),
            "sample_index": index,
            **said._asdict(),
            "error": error,
            "author": Author.EDIT,
            "derived_from": origin.id,
        }
    )
