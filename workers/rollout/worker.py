"""The rollout worker: samples one shard with the policy it is told to, and writes a draft of it before it answers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from policies.base.component import Component, create
from policies.base.errors import RolloutError, boundary
from policies.base.records import (
    Author,
    Ending,
    Message,
    PolicyVersion,
    Prompt,
    Record,
    Sampling,
    StopReason,
    Trajectory,
    TrajectoryStatus,
    Turn,
)
from policies.base.role_answers import RoleAnswer
from policies.storage.artifacts import Written, read_records, write_draft
from workers.cluster.compute_threads import set_threads
from workers.cluster.item_filter import WHOLE, ItemFilter
from workers.rollout.chat.chat_settings import ChatSettings
from workers.rollout.chat.reasoning_steps import with_steps
from workers.rollout.chat.thought_marks import with_thought_marks
from workers.rollout.engine import RolloutEngine
from workers.rollout.recorded_turns import Written as WrittenTurns
from workers.rollout.recorded_turns import recorded_trajectory, write
from workers.rollout.strategy import RolloutJob, RolloutStrategy

StepKind = Literal["turn", "line", "sentence"]
"""What a step is: a policy turn, or the lines or sentences in it."""


class EarlierSamples(Record):
    """Attempts that another policy makes at each prompt. Example: `EarlierSamples(policy=..., samples=2)`."""

    policy: PolicyVersion
    samples: int


class RoleSamples(Record):
    """Answers of a role that become attempts. Example: `RoleSamples(answers_path="...", role="teacher", samples=2)`."""

    answers_path: str
    role: str
    samples: int


class ShardJob(Record):
    """One shard to sample. Example: `ShardJob(prompts_path=".../prompts/shard-0000.parquet", scope="r1", ...)`."""

    prompts_path: str
    output_path: str
    """Where the draft goes: a path that no other attempt uses."""
    policy: PolicyVersion
    samples_per_prompt: int
    sampling: Sampling
    scope: str
    seed: int
    strategy: int = 0
    """Which of the worker's strategies."""
    earlier: tuple[EarlierSamples, ...] = ()
    """Further attempts by earlier policies; their sample indices follow those of `policy`."""
    role: RoleSamples | None = None
    """Answers that another model gave; their sample indices follow those of all policies."""
    item_filter: ItemFilter = WHOLE
    """Which prompts to sample."""


class RolloutWorker:
    """One engine for the whole run, and the strategies that use it."""

    def __init__(
        self,
        engine: Component.Config,
        strategies: Sequence[Component.Config],
        steps: StepKind = "turn",
        *,
        policy: PolicyVersion,
        dtype: str,
        seed: int,
        threads: int | None = None,
        shared_by: int = 1,
        chat: ChatSettings = ChatSettings(),  # noqa: B008 # frozen
    ) -> None:
        """Start the engine with `policy`; returns when it can sample.

        Args:
            engine: what samples.
            strategies: that a job may ask for.
            steps: what a step of a turn is.
            policy: that the engine starts with.
            dtype: number format of its weights.
            seed: this worker's alone.
            threads: CPU threads to compute with; None shares this machine's cores.
            shared_by: rollout workers on this machine.
            chat: what the run tells the chat template.

        Raises:
            ConfigurationError: a strategy cannot work with this model or on this machine.
        """
        set_threads(threads, shared_by=shared_by)
        with boundary(RolloutError, f"rollout engine {engine.type!r} could not start"):
            self.engine: RolloutEngine = create(engine, policy=policy, dtype=dtype, seed=seed)
            self.engine.tell(chat)
        self.strategies: list[RolloutStrategy] = []
        for config in strategies:
            strategy: RolloutStrategy = create(config)
            self.strategies.append(strategy)
            with boundary(RolloutError, f"rollout strategy {config.type!r} cannot start"):
                strategy.prepare(self.engine)
        self.steps: StepKind = steps

    def close(self) -> None:
        """Give back what the strategies hold."""
        for strategy in self.strategies:
            strategy.close()

    def load_policy(self, policy: PolicyVersion) -> dict[str, JsonValue]:
        """Serve `policy` from now on; answers with the version and digest that are served."""
        if self.engine.serving != policy:
            with boundary(
                RolloutError, f"loading policy version {policy.number} into the engine failed"
            ):
                self.engine.load_policy(policy)
        return self.serving()

    def serving(self) -> dict[str, JsonValue]:
        """The version and weight digest that answer now."""
        return {"version": self.engine.serving.number, "digest": self.engine.serving.digest}

    def sample(self, job: ShardJob) -> Written:
        """Sample the shard with `job.policy`, write a draft, answer with it and a summary (counts and sums).

        A worker that was restarted since the last sync loads the right policy first: what a trajectory says
        about its policy is always true.
        """
        output = Path(job.output_path)
        prompts = tuple(read_records(Path(job.prompts_path), Prompt))
        started = time.monotonic()
        with boundary(RolloutError, f"sampling {output.name} failed"):
            trajectories = self._sample(
                job, tuple(p for p in prompts if job.item_filter.takes(p.id))
            ) + _not_sampled(job, prompts)
        place = {prompt.id: index for index, prompt in enumerate(prompts)}
        trajectories.sort(key=lambda t: (place[t.prompt_id], t.sample_index))
        trajectories = [
            _sound(t) if t.author not in _WRITTEN_ELSEWHERE else t for t in trajectories
        ]
        summary = summarize(trajectories)
        if job.item_filter.skip:
            summary["quarantined"] = len(job.item_filter.skip)
        summary["seconds"] = time.monotonic() - started
        draft = write_draft(output, Trajectory, trajectories)
        return Written(files=(draft,), summary=summary)

    def _sample(self, job: ShardJob, prompts: tuple[Prompt, ...]) -> list[Trajectory]:
        """All attempts, grouped by prompt. Begins with the policy that is loaded, which saves a swap of weights."""
        if not prompts:
            return []
        found: list[Trajectory] = []
        shares = sorted(_shares(job), key=lambda share: share[0] != self.engine.serving)
        for policy, samples, first in shares:
            self.load_policy(policy)
            found += self.strategies[job.strategy].run(
                RolloutJob(
                    prompts=prompts,
                    samples_per_prompt=samples,
                    sampling=job.sampling,
                    scope=job.scope,
                    seed=job.seed,
                    first_sample=first,
                ),
                self.engine,
            )
        if job.role is not None:
            self.load_policy(job.policy)  # beside which the role's answers stand
            found += _of_role(job, job.role, prompts, self.engine)
        chat = self.engine.chat
        return [with_thought_marks(with_steps(t, chat, self.steps), chat) for t in found]


def _of_role(
    job: ShardJob, role: RoleSamples, prompts: Sequence[Prompt], engine: RolloutEngine
) -> list[Trajectory]:
    """The answers of a role as attempts, written on the policy's own tokens."""
    asked = RolloutJob(
        prompts=tuple(prompts),
        samples_per_prompt=role.samples,
        sampling=job.sampling,
        scope=job.scope,
        seed=job.seed,
        first_sample=_num_sampled(job),
    )
    answers: dict[str, list[RoleAnswer]] = {}
    for answer in read_records(Path(role.answers_path), RoleAnswer):
        answers.setdefault(answer.prompt_id, []).append(answer)
    found = []
    for prompt in prompts:
        for answer in answers.get(prompt.id, ()):
            written: WrittenTurns = ((), (), answer.error)
            if answer.text is not None:
                said = [Message(role="assistant", content=answer.text)]
                written = write(prompt, partial(list, said), engine, "keep")
            index = asked.first_sample + answer.index
            trajectory = recorded_trajectory(asked, prompt, index, written, engine)
            update = {"author": Author.ROLE, "role": role.role}
            found.append(trajectory.model_copy(update=update))
    return found


_WRITTEN_ELSEWHERE = (Author.LOG, Author.ROLE)
"""Authors whose turns are no sampled ones: what holds for an engine's answers need not hold for them."""


def _shares(job: ShardJob) -> list[tuple[PolicyVersion, int, int]]:
    """Return who samples how often, and the index of its first sample."""
    shares = [(job.policy, job.samples_per_prompt, 0)]
    for each in job.earlier:
        _, samples, first = shares[-1]
        shares.append((each.policy, each.samples, first + samples))
    return shares


def _share_of_role(job: ShardJob) -> list[tuple[PolicyVersion, int, int]]:
    return [] if job.role is None else [(job.policy, job.role.samples, _num_sampled(job))]


def _num_sampled(job: ShardJob) -> int:
    """Attempts of all policies at one prompt."""
    return sum(samples for _, samples, _ in _shares(job))


def _not_sampled(job: ShardJob, prompts: Sequence[Prompt]) -> list[Trajectory]:
    """Failed attempts at the prompts in quarantine: as many as there would have been."""
    return [
        Trajectory(
            id=f"{job.scope}.{prompt.id}.{index}",
            prompt_id=prompt.id,
            sample_index=index,
            policy_version=policy.number,
            policy_digest=policy.digest,
            prompt_token_ids=(),
            turns=(),
            status=TrajectoryStatus.ERROR,
            sampling=job.sampling,
            error=ItemFilter.reason("the prompt"),
            ending=Ending.FAILED,
        )
        for prompt in prompts
        if prompt.id in job.item_filter.skip
        for policy, samples, first in _shares(job) + _share_of_role(job)
        for index in range(first, first + samples)
    ]


def _sound(trajectory: Trajectory) -> Trajectory:
    """The trajectory, or a failed one in its place when the engine gave what no engine may give."""
    error = next(filter(None, (_fault(turn, trajectory) for turn in trajectory.turns)), None)
    if error is None:
        return trajectory
    update = {
        "turns": (),
        "status": TrajectoryStatus.ERROR,
        "error": error,
        "ending": Ending.FAILED,
        "outcome": None,
        "graded": None,
    }
    return trajectory.model_copy(update=update)


def _fault(turn: Turn, trajectory: Trajectory) -> str | None:
    """Return what is wrong with a sampled turn: to be wrong is the policy's affair, to be this is not."""
    if turn.role != "policy":
        return None
    if turn.stop_reason is StopReason.ERROR:
        return trajectory.error or "the engine broke a completion off"
    num_tokens, most = len(turn.token_ids), trajectory.sampling.max_tokens
    if not num_tokens:
        return "the engine gave a completion without a token"
    if num_tokens > most:
        return f"the engine gave {num_tokens} tokens where at most {most} were asked for"
    if not all(math.isfinite(x) for x in turn.logprobs):
        return "the engine gave a log-prob that is not finite"
    return None


def summarize(rows: Sequence[Trajectory]) -> dict[str, JsonValue]:
    """Counts and sums of one shard, under 1 KB; only the tracker divides.

    `endings`, `tool_calls` (by status) and `versions` (trajectories by policy version) name what occurred; `authors`
    and `unscored_tokens` (without a log-prob) are there where others than the policy wrote;
    `outcome_sum` and `outcomes` are there when an environment scored an episode.
    """
    statuses = [t.status for t in rows]
    policy_turns = [turn for t in rows for turn in t.turns if turn.role == "policy"]
    logprobs = [x for t in rows for x in t.logprobs]
    calls = Counter(call.status.value for t in rows for turn in t.turns for call in turn.calls)
    outcomes = [t.outcome for t in rows if t.outcome is not None]
    found: dict[str, JsonValue] = {
        "trajectories": len(rows),
        "tokens": sum(t.num_policy_tokens for t in rows),
        "prompt_tokens": sum(len(t.prompt_token_ids) for t in rows),
        "truncated": statuses.count(TrajectoryStatus.TRUNCATED),
        "errors": statuses.count(TrajectoryStatus.ERROR),
        "turns": len(policy_turns),
        "negative_logprob": -sum(logprobs),
        "endings": dict(Counter(t.ending.value for t in rows)),
        "versions": dict(Counter(str(t.policy_version) for t in rows)),
    }
    foreign = [t for t in rows if t.author is not Author.POLICY]
    if foreign:
        found["authors"] = dict(Counter(t.author.value for t in foreign))
        found["unscored_tokens"] = sum(t.num_policy_tokens for t in foreign)
    if calls:
        found["tool_calls"] = dict(calls)
    if outcomes:
        found |= {"outcome_sum": math.fsum(outcomes), "outcomes": len(outcomes)}
    return found
