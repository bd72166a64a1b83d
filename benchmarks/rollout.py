"""Tokens per second of sampling as a run does it, beside bare `vllm.LLM.generate`, as one ratio.

    python benchmarks/rollout.py [--repeats 3] [--prompts 40] [--samples 8] [--max-tokens 48] [--model DIR]
        [--graphs]

In a run: the rollout worker in its Ray actor, started and handed shards as the driver does it; records and Parquet are
included. Bare: a process of its own with vLLM's own processes, all cores bound; block size, log-probs, prompts, budget
as ours. Both are started first, which is counted by itself, and stay up; then they sample in turn, `--repeats` times,
each time prompts that neither has seen. Reported are the medians, and the median of the ratios within a repeat.
`--graphs` lets both capture graphs (`enforce_eager` off), which takes minutes to start on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.number_formats import cpu_multiplies_bf16
from policies.base.records import Message, PolicyVersion, Prompt, Sampling
from policies.storage.artifacts import commit, file_sha256, write_records
from policies.storage.policy_store import digest_of, weight_files
from workers.cluster.ray.cluster import RayCluster
from workers.cluster.seam import Group, GroupSpec, Restarts
from workers.rollout.chat.tokenizer_chat import TokenizerChat
from workers.rollout.engine import ENGINES
from workers.rollout.strategy import STRATEGIES
from workers.rollout.worker import RolloutWorker, ShardJob

DEMO = Path.home() / ".cache" / "pawl" / "models" / "smollm2-135m-instruct"
DTYPE = "bfloat16" if cpu_multiplies_bf16() else "float32"
"""Of both sides: what `policy.dtype: auto` takes here."""
MAX_MODEL_LEN = 512
MAX_NUM_SEQS = 128
PER_SHARD = 16
"""Prompts of one shard, `rollout.prompts_per_shard` by default."""
TEMPERATURE = 0.9
_PATIENCE_SECONDS = 600.0


class InARun:
    """The rollout worker in its actor."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self._asked, self._folder, self._calls = asked, folder, 0
        self._policy = version(asked.model)
        self._cluster = RayCluster()
        engine = {
            "type": "vllm",
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_NUM_SEQS,
            "enforce_eager": not asked.graphs,
        }
        kwargs: dict[str, Any] = {
            "engine": ENGINES.parse(engine),
            "strategies": [STRATEGIES.parse("independent")],
            "policy": self._policy,
            "dtype": DTYPE,
            "seed": 0,
        }
        self._group: Group = self._cluster.start_group(
            GroupSpec("rollout", RolloutWorker, kwargs, restarts=Restarts(8, _PATIENCE_SECONDS))
        )
        self._cluster.wait_ready([self._group], _PATIENCE_SECONDS)

    def sample(self, prompts: Sequence[Prompt]) -> tuple[int, float]:
        """Tokens and seconds."""
        folder = self._folder / str(self._calls)
        self._calls += 1
        folder.mkdir()
        jobs = []
        for start in range(0, len(prompts), PER_SHARD):
            path = folder / f"prompts-{start}.parquet"
            write_records(path, Prompt, prompts[start : start + PER_SHARD], summary={})
            jobs.append(
                ShardJob(
                    prompts_path=str(path),
                    output_path=str(folder / f"draft-{start}.parquet"),
                    policy=self._policy,
                    samples_per_prompt=self._asked.samples,
                    sampling=Sampling(temperature=TEMPERATURE, max_tokens=self._asked.max_tokens),
                    scope=f"r{self._calls}",
                    seed=0,
                )
            )
        started = time.perf_counter()
        waiting = [self._group.submit("sample", job) for job in jobs]
        tokens = 0
        while waiting:
            for call in self._cluster.wait_any(waiting, _PATIENCE_SECONDS):
                waiting.remove(call)
                written = self._cluster.result(call, _PATIENCE_SECONDS)
                (draft,) = written.files
                commit(
                    draft, Path(draft.path).with_suffix(".done.parquet"), summary=written.summary
                )
                tokens += int(written.summary["tokens"])
        return tokens, time.perf_counter() - started

    def close(self) -> None:
        """End the cluster."""
        self._cluster.close()


class Bare:
    """vLLM by itself in a process of its own, which is asked through a pipe."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._chat = TokenizerChat.load(asked.model)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": cores}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        environment.pop("OMP_NUM_THREADS", None)
        settings = {"model": str(asked.model), "samples": asked.samples, "graphs": asked.graphs}
        settings |= {"max_tokens": asked.max_tokens, "stop": sorted(self._chat.terminators)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--bare", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # vLLM may print lines of its own
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit("the process with bare vLLM ended")

    def sample(self, prompts: Sequence[Prompt]) -> tuple[int, float]:
        """Tokens and seconds."""
        ids = [
            list(self._chat.encode(self._chat.text(p.messages, generation_prompt=True)))
            for p in prompts
        ]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(ids) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return int(answer["tokens"]), answer["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def serve_bare(settings: dict[str, Any]) -> None:
    """Sample what comes in on standard input with `LLM.generate`; answer with tokens and seconds."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        model=settings["model"],
        dtype=DTYPE,
        block_size=32,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        enforce_eager=not settings["graphs"],
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    parameters = SamplingParams(
        temperature=TEMPERATURE,
        max_tokens=settings["max_tokens"],
        stop_token_ids=settings["stop"],
        logprobs=0,
    )
    print("{}", flush=True)
    for line in sys.stdin:
        prompts = [
            TokensPrompt(prompt_token_ids=ids)
            for ids in json.loads(line)
            for _ in range(settings["samples"])
        ]
        started = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


def questions(number: int, count: int) -> list[Prompt]:
    """Prompts of one repeat, none of which another repeat has."""
    return [
        Prompt(
            id=f"{number}-{n}",
            messages=(
                Message(role="user", content=f"What is {number + 12} times {n + 31}? Explain it."),
            ),
        )
        for n in range(count)
    ]


def version(path: Path) -> PolicyVersion:
    """The model in `path` as a policy version."""
    digest = digest_of({p.name: file_sha256(p) for p in weight_files(path)})
    return PolicyVersion(number=0, round=0, parent=None, path=str(path), digest=digest)


def measure(asked: argparse.Namespace, folder: Path) -> None:
    """Start both, let them sample in turn, print."""
    sides: dict[str, InARun | Bare] = {}
    try:
        for name in ("in a run", "bare"):
            started = time.perf_counter()
            sides[name] = InARun(asked, folder) if name == "in a run" else Bare(asked)
            print(f"{name}: started in {time.perf_counter() - started:.1f} s", flush=True)
        for side in sides.values():
            side.sample(questions(0, 8))  # the first use compiles kernels
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(asked.repeats):
            for name, side in sides.items():
                tokens, seconds = side.sample(questions(repeat + 1, asked.prompts))
                speeds[name].append(tokens / seconds)
                print(
                    f"repeat {repeat}: {name}: {tokens} tokens in {seconds:.2f} s, "
                    f"{tokens / seconds:.0f} tokens/s",
                    flush=True,
                )
    finally:
        for side in sides.values():
            side.close()
    ratios = [a / b for a, b in zip(speeds["in a run"], speeds["bare"], strict=True)]
    told = ", ".join(f"{name} {statistics.median(found):.0f}" for name, found in speeds.items())
    print(f"medians in tokens/s: {told}")
    print(
        f"in a run / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bare:
        serve_bare(json.loads(asked.bare))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(asked, Path(folder))


if __name__ == "__main__":
    main()
