"""The rollout worker: samples one shard with the policy it is told to, and writes it before it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from policies.component import Component, create
from policies.errors import RolloutError, boundary
from policies.records import PolicyVersion, Prompt, Record, Sampling, Trajectory, TrajectoryStatus
from policies.shards import read_marker, read_records, write_records
from workers.rollout.engine import RolloutEngine
from workers.rollout.strategy import RolloutJob, RolloutStrategy


class ShardJob(Record):
    """One shard to sample. Example: `ShardJob(prompts_path=".../prompts/shard-0000.parquet", scope="r1", ...)`."""

    prompts_path: str
    output_path: str
    policy: PolicyVersion
    samples_per_prompt: int
    sampling: Sampling
    scope: str
    seed: int


class RolloutWorker:
    """One engine for the whole run, and the strategy that uses it."""

    def __init__(
        self,
        engine: Component.Config,
        strategy: Component.Config,
        *,
        policy: PolicyVersion,
        dtype: str,
        seed: int,
    ) -> None:
        """Start the engine with `policy`; returns when it can sample."""
        with boundary(RolloutError, f"rollout engine {engine.type!r} could not start"):
            self.engine: RolloutEngine = create(engine, policy=policy, dtype=dtype, seed=seed)
        self.strategy: RolloutStrategy = create(strategy)

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
        self.load_policy(job.policy)
        prompts = tuple(read_records(Path(job.prompts_path), Prompt))
        started = time.monotonic()
        with boundary(RolloutError, f"sampling {output.name} failed"):
            trajectories = self.strategy.run(
                RolloutJob(
                    prompts=prompts,
                    samples_per_prompt=job.samples_per_prompt,
                    sampling=job.sampling,
                    scope=job.scope,
                    seed=job.seed,
                ),
                self.engine,
            )
        summary = summarize(trajectories)
        summary["seconds"] = time.monotonic() - started
        return write_records(output, Trajectory, list(trajectories), summary=summary).summary


def summarize(rows: Sequence[Trajectory]) -> dict[str, JsonValue]:
    """Counts and sums of one shard; only the tracker divides."""
    statuses = [t.status for t in rows]
    logprobs = [x for t in rows for turn in t.turns for x in turn.logprobs]
    return {
        "trajectories": len(rows),
        "tokens": sum(t.num_policy_tokens for t in rows),
        "prompt_tokens": sum(len(t.prompt_token_ids) for t in rows),
        "truncated": statuses.count(TrajectoryStatus.TRUNCATED),
        "errors": statuses.count(TrajectoryStatus.ERROR),
        "turns": sum(len(t.turns) for t in rows),
        "negative_logprob": -sum(logprobs),
    }
