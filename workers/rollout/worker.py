"""The rollout worker: samples one shard with the policy it is told to, and writes it before it answers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from policies.component import Component, create
from policies.errors import RolloutError, boundary
from policies.records import PolicyVersion, Prompt, Record, Sampling, Trajectory, TrajectoryStatus
from policies.shards import read_marker, read_records, write_records
from workers.rollout.engine import RolloutEngine
from workers.rollout.segment import with_steps
from workers.rollout.strategy import RolloutJob, RolloutStrategy

StepKind = Literal["turn", "line", "sentence"]
"""What a step is: a policy turn, or the lines or sentences in it."""


class EarlierSamples(Record):
    """Attempts that another policy makes at each prompt. Example: `EarlierSamples(policy=..., samples=2)`."""

    policy: PolicyVersion
    samples: int


class ShardJob(Record):
    """One shard to sample. Example: `ShardJob(prompts_path=".../prompts/shard-0000.parquet", scope="r1", ...)`."""

    prompts_path: str
    output_path: str
    policy: PolicyVersion
    samples_per_prompt: int
    sampling: Sampling
    scope: str
    seed: int
    strategy: int = 0
    """Which of the worker's strategies."""
    earlier: tuple[EarlierSamples, ...] = ()
    """Further attempts by earlier policies; their sample indices follow those of `policy`."""


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
    ) -> None:
        """Start the engine with `policy`; returns when it can sample.

        Raises:
            ConfigurationError: a strategy cannot work with this model or on this machine.
        """
        with boundary(RolloutError, f"rollout engine {engine.type!r} could not start"):
            self.engine: RolloutEngine = create(engine, policy=policy, dtype=dtype, seed=seed)
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

    def sample(self, job: ShardJob) -> dict[str, JsonValue]:
        """Sample the shard with `job.policy`, write it, return a summary (counts and sums).

        A shard that is finished already is not sampled again. A worker that was restarted since the last
        sync loads the right policy first: what a trajectory says about its policy is always true.
        """
        output = Path(job.output_path)
        marker = read_marker(output)
        if marker is not None:
            return marker.summary
        prompts = tuple(read_records(Path(job.prompts_path), Prompt))
        started = time.monotonic()
        with boundary(RolloutError, f"sampling {output.name} failed"):
            trajectories = self._sample(job, prompts)
        summary = summarize(trajectories)
        summary["seconds"] = time.monotonic() - started
        return write_records(output, Trajectory, list(trajectories), summary=summary).summary

    def _sample(self, job: ShardJob, prompts: tuple[Prompt, ...]) -> list[Trajectory]:
        """All attempts, grouped by prompt. Begins with the policy that is loaded, which saves a swap of weights."""
        shares: list[tuple[PolicyVersion, int, int]] = [(job.policy, job.samples_per_prompt, 0)]
        for each in job.earlier:
            _, samples, first = shares[-1]
            shares.append((each.policy, each.samples, first + samples))
        found: list[Trajectory] = []
        for policy, samples, first in sorted(shares, key=lambda s: s[0] != self.engine.serving):
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
        place = {prompt.id: index for index, prompt in enumerate(prompts)}
        found.sort(key=lambda t: (place[t.prompt_id], t.sample_index))
        return [with_steps(t, self.engine.chat, self.steps) for t in found]


def summarize(rows: Sequence[Trajectory]) -> dict[str, JsonValue]:
    """Counts and sums of one shard, under 1 KB; only the tracker divides.

    `endings`, `tool_calls` (by status) and `versions` (trajectories by policy version) name what occurred;
    `outcome_sum` and `outcomes` are there when an environment scored an episode.
    """
    statuses = [t.status for t in rows]
    policy_turns = [turn for t in rows for turn in t.turns if turn.role == "policy"]
    logprobs = [x for turn in policy_turns for x in turn.logprobs]
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
    if calls:
        found["tool_calls"] = dict(calls)
    if outcomes:
        found |= {"outcome_sum": math.fsum(outcomes), "outcomes": len(outcomes)}
    return found
