"""Continuous batching against a barrier per turn: the same two-turn trajectories, some of whose tools are slow.

    python benchmarks/continuous_batching.py [--trajectories 64] [--slow-share 0.1] [--slow-seconds 2]
        [--repeats 3] [--model DIR] [--engine vllm]

Both ways run in one process on one engine, in turn, `--repeats` times; what is reported is the ratio of their wall
times within each repeat. The barrier is what a loop over turns does: generate all turns, wait for all tools, generate
all next turns. Both ways call the tools in equally many threads, and the tools of the same trajectories are slow.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from policies.base.component import create
from policies.base.records import Message, PolicyVersion, Prompt, Sampling, Trajectory
from policies.base.seeds import derive_rng
from policies.storage.artifacts import file_sha256
from policies.storage.policy_store import digest_of, weight_files
from workers.rollout.engine import ENGINES, Generation, GenerationRequest, RolloutEngine
from workers.rollout.multi_turn.strategy import ConversationStrategy, Counterpart, Reply
from workers.rollout.strategy import RolloutJob

DEMO = Path.home() / ".cache" / "pawl" / "models" / "smollm2-135m-instruct"
_PATIENCE_SECONDS = 300.0
"""Longest wait at the barrier."""


class SlowTool(Counterpart):
    """Answers the first turn after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def reply(self, text: str, turn: int) -> Reply:
        if turn > 0:
            return Reply()
        time.sleep(self._seconds)
        return Reply(messages=(Message(role="user", content="Output: 42. Now give the answer."),))


class Continuous(ConversationStrategy):
    """The shipped loop with tools of mixed latency."""

    slow_share = 0.1
    slow_seconds = 2.0
    fast_seconds = 0.005

    def counterpart(self, prompt: Prompt, seed: int) -> Counterpart:
        slow = derive_rng(prompt.id, "slow").random() < self.slow_share
        return SlowTool(self.slow_seconds if slow else self.fast_seconds)


class BarrierEngine(RolloutEngine):
    """Hands nothing on before everything that is under way has come: turns the shipped loop into one by turns.

    A turn is begun when all trajectories have submitted theirs, that is, when the last tool has answered.
    """

    def __init__(self, inner: RolloutEngine, expected: int) -> None:
        self._inner = inner
        self._expected = expected
        self._submitted: list[tuple[int, GenerationRequest]] = []
        self._tickets = 0
        self._deadline = time.monotonic() + _PATIENCE_SECONDS
        self.chat = inner.chat
        self.serving = inner.serving
        self.max_context = inner.max_context

    def submit(self, request: GenerationRequest) -> int:
        self._tickets += 1
        self._submitted.append((self._tickets, request))
        return self._tickets

    def advance(self) -> list[tuple[int, Generation]]:
        if len(self._submitted) < self._expected:
            if time.monotonic() > self._deadline:
                raise SystemExit("the barrier waits for a trajectory that never comes")
            time.sleep(0.001)
            return []
        self._deadline = time.monotonic() + _PATIENCE_SECONDS
        batch, self._submitted = self._submitted, []
        answers = self._inner.generate([request for _, request in batch])
        return [(ticket, answer) for (ticket, _), answer in zip(batch, answers, strict=True)]

    def abandon(self) -> None:
        self._submitted = []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=32, help="per turn")
    parser.add_argument("--slow-share", type=float, default=0.1)
    parser.add_argument("--slow-seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--engine", default="vllm")
    given = parser.parse_args()
    engine: RolloutEngine = create(ENGINES.parse(given.engine), policy=version(given.model), seed=0)
    strategy = Continuous(
        Continuous.Config(type="continuous", max_turns=2, cut_turns="answer", max_waiting=64)
    )
    strategy.slow_share, strategy.slow_seconds = given.slow_share, given.slow_seconds
    prompts = [question(n) for n in range(given.trajectories)]
    measure(strategy, engine, prompts[:8], given.max_tokens)  # first use compiles kernels
    ratios = []
    for repeat in range(given.repeats):
        barrier = BarrierEngine(engine, expected=len(prompts))
        ways = {"barrier": barrier, "continuous": engine}
        order = list(ways) if repeat % 2 else list(reversed(ways))  # neither always goes first
        seconds = {way: measure(strategy, ways[way], prompts, given.max_tokens) for way in order}
        ratios.append(seconds["barrier"] / seconds["continuous"])
        print(
            f"repeat {repeat}: barrier {seconds['barrier']:.2f} s, "
            f"continuous {seconds['continuous']:.2f} s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(
        f"{given.trajectories} two-turn trajectories, {given.slow_share:.0%} of the tools take "
        f"{given.slow_seconds:g} s: barrier / continuous = {statistics.median(ratios):.2f} "
        f"(median of {len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f})"
    )


def measure(
    strategy: Continuous, engine: RolloutEngine, prompts: Sequence[Prompt], max_tokens: int
) -> float:
    """Seconds that one sample of each prompt takes."""
    sampling = Sampling(temperature=0.9, max_tokens=max_tokens)
    started = time.perf_counter()
    found = strategy.run(RolloutJob(tuple(prompts), 1, sampling, "r1", seed=0), engine)
    seconds = time.perf_counter() - started
    check(found)
    return seconds


def check(found: Sequence[Trajectory]) -> None:
    """Both ways did the whole work, or the times mean nothing."""
    wrong = [t for t in found if t.error or sum(x.role == "policy" for x in t.turns) != 2]
    if wrong:
        raise SystemExit(f"{len(wrong)} trajectories have no two turns: {wrong[0].error}")


def question(number: int) -> Prompt:
    """A prompt of its own for each trajectory."""
    text = f"What is {number + 12} times {number + 31}?"
    return Prompt(id=f"p{number}", messages=(Message(role="user", content=text),))


def version(path: Path) -> PolicyVersion:
    """The model in `path` as a policy version."""
    digest = digest_of({p.name: file_sha256(p) for p in weight_files(path)})
    return PolicyVersion(number=0, round=0, parent=None, path=str(path), digest=digest)


if __name__ == "__main__":
    main()
