"""Sample whole attempts, then continue some of them again from inside: attempts that share a prefix, for step pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT
from policies.base.component import Component
from policies.base.records import (
    Branch,
    Ending,
    Prompt,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.base.seeds import derive_rng
from workers.rollout.chat.reasoning_steps import steps_of
from workers.rollout.engine import Generation, GenerationRequest, RolloutEngine
from workers.rollout.strategy import RolloutJob, RolloutStrategy


@dataclass(frozen=True)
class _Start:
    """An attempt before it is sampled: what it takes over from its trunk, if it has one."""

    prompt: Prompt
    index: int
    prompt_token_ids: tuple[int, ...]
    shared: int = 0
    trunk: Trajectory | None = None

    @property
    def head(self) -> Turn | None:
        return None if self.trunk is None else self.trunk.turns[0]

    @property
    def shared_ids(self) -> tuple[int, ...]:
        return () if self.head is None else self.head.token_ids[: self.shared]


class BranchStrategy(RolloutStrategy):
    """Trunks are sampled as `independent` does; then steps of them are sampled again from their exact tokens.

    Of K attempts at a prompt, K // (1 + forks * continuations), but at least one, are trunks. The others are
    continuations, dealt out fork by fork; where the trunks have too few places to fork, whole attempts fill up. So
    there are K attempts in any case. A continuation is one policy turn: the shared tokens with the trunk's
    log-probs, then new ones; `Trajectory.branch` says where it left its trunk.
    """

    class Config(Component.Config):
        """Settings of `branch`."""

        at: Literal["sentence", "line", "token"] = "sentence"
        """Where an attempt may be forked: after a sentence, after a line, or evenly by tokens."""
        forks: int = Field(default=2, ge=1, le=MAX_COUNT)
        """Most places at which one trunk is forked; drawn at random where it has more."""
        continuations: int = Field(default=2, ge=1, le=MAX_COUNT)
        """Continuations sampled at each place."""

    config: Config

    def run(self, job: RolloutJob, engine: RolloutEngine) -> Sequence[Trajectory]:
        rendered = {p.id: engine.render(p.messages, p.tools) for p in job.prompts}
        per_trunk = 1 + self.config.forks * self.config.continuations
        num_trunks = max(1, job.samples_per_prompt // per_trunk)
        indices = job.sample_indices
        trunks = _sample(
            [_Start(p, k, rendered[p.id]) for p in job.prompts for k in indices[:num_trunks]],
            job,
            engine,
        )
        starts = [
            start
            for i, prompt in enumerate(job.prompts)
            for start in self._continued(
                prompt,
                trunks[i * num_trunks : (i + 1) * num_trunks],
                indices[num_trunks:],
                job,
                engine,
            )
        ]
        found = [*trunks, *_sample(starts, job, engine)]
        place = {prompt.id: i for i, prompt in enumerate(job.prompts)}
        return sorted(found, key=lambda t: (place[t.prompt_id], t.sample_index))

    def _continued(
        self,
        prompt: Prompt,
        trunks: Sequence[Trajectory],
        indices: Sequence[int],
        job: RolloutJob,
        engine: RolloutEngine,
    ) -> Iterator[_Start]:
        """Yield what to sample for the attempts `indices`: continuations of the trunks, then whole attempts."""
        forks = [
            (trunk, place)
            for trunk in trunks
            for place in self._places(trunk, job, engine)
            for _ in range(self.config.continuations)
        ]
        prompt_token_ids = trunks[0].prompt_token_ids
        for number, index in enumerate(indices):
            if number < len(forks):
                trunk, shared = forks[number]
                yield _Start(prompt, index, prompt_token_ids, shared, trunk)
            else:
                yield _Start(prompt, index, prompt_token_ids)

    def _places(self, trunk: Trajectory, job: RolloutJob, engine: RolloutEngine) -> list[int]:
        """Numbers of tokens of the trunk's turn after which to fork, in order."""
        if trunk.status is TrajectoryStatus.ERROR:
            return []
        ids = trunk.turns[0].token_ids
        written = next(
            (n for n in range(len(ids), 0, -1) if ids[n - 1] not in engine.chat.terminators), 0
        )
        if self.config.at == "token":
            parts = self.config.forks + 1
            return sorted({written * i // parts for i in range(1, parts)} - {0, written})
        places = [
            step.start
            for step in steps_of(ids, engine.chat, self.config.at)
            if 0 < step.start < written
        ]
        if len(places) <= self.config.forks:
            return places
        return sorted(derive_rng(job.seed, trunk.id, "fork").sample(places, self.config.forks))


def _sample(starts: Sequence[_Start], job: RolloutJob, engine: RolloutEngine) -> list[Trajectory]:
    """One attempt per start, in their order; one that does not fit the model is an error and is not sampled."""
    fitting = [s for s in starts if _fits(s, engine)]
    generations = iter(engine.generate([_request(s, job) for s in fitting]) if fitting else [])
    return [
        _trajectory(s, job, engine, _turn(s, next(generations), engine))
        if _fits(s, engine)
        else _too_long(s, job, engine)
        for s in starts
    ]


def _fits(start: _Start, engine: RolloutEngine) -> bool:
    needed = len(start.prompt_token_ids) + start.shared + 1
    return engine.max_context is None or needed <= engine.max_context


def _request(start: _Start, job: RolloutJob) -> GenerationRequest:
    """The exact tokens so far, and what is left of the turn's budget."""
    sampling: Sampling = job.sampling.model_copy(
        update={"max_tokens": job.sampling.max_tokens - start.shared}
    )
    return GenerationRequest(
        prompt_token_ids=start.prompt_token_ids + start.shared_ids,
        sampling=sampling,
        seed=job.seed_of(start.prompt, start.index),
    )


def _turn(start: _Start, sampled: Generation, engine: RolloutEngine) -> Turn:
    head = start.head
    if head is None:
        ids, logprobs, text = sampled.token_ids, sampled.logprobs, sampled.text
    else:
        ids = start.shared_ids + sampled.token_ids
        logprobs = head.logprobs[: start.shared] + sampled.logprobs
        text = engine.chat.decode(ids)
    return Turn(
        role="policy",
        token_ids=ids,
        text=text,
        logprobs=logprobs,
        stop_reason=sampled.stop_reason,
    )


def _trajectory(start: _Start, job: RolloutJob, engine: RolloutEngine, turn: Turn) -> Trajectory:
    is_cut = turn.stop_reason is StopReason.LENGTH
    branch = None
    if start.trunk is not None:
        at_token = len(start.prompt_token_ids) + start.shared
        branch = Branch(parent=start.trunk.id, at_token=at_token)
    return Trajectory(
        id=job.trajectory_id(start.prompt, start.index),
        prompt_id=start.prompt.id,
        sample_index=start.index,
        policy_version=engine.serving.number,
        policy_digest=engine.serving.digest,
        prompt_token_ids=start.prompt_token_ids,
        turns=(turn,),
        status=TrajectoryStatus.TRUNCATED if is_cut else TrajectoryStatus.COMPLETE,
        sampling=job.sampling,
        branch=branch,
        ending=Ending.TOKEN_LIMIT if is_cut else Ending.ANSWERED,
    )


def _too_long(start: _Start, job: RolloutJob, engine: RolloutEngine) -> Trajectory:
    return Trajectory(
        id=job.trajectory_id(start.prompt, start.index),
        prompt_id=start.prompt.id,
        sample_index=start.index,
        policy_version=engine.serving.number,
        policy_digest=engine.serving.digest,
        prompt_token_ids=start.prompt_token_ids,
        turns=(),
        status=TrajectoryStatus.ERROR,
        sampling=job.sampling,
        error=f"the prompt has {len(start.prompt_token_ids)} tokens, and the engine takes {engine.max_context} "
        "with the completion",
        ending=Ending.FAILED,
    )
