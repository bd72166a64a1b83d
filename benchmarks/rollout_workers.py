"""Tokens per second of the collect phase with 1, 2 and 4 rollout workers on a local Ray cluster.

    python benchmarks/rollout_workers.py [--workers 1 2 4] [--repeats 3] [--shards 48] [--seconds-per-token 0.05]

The engine is the shipped fake, which sleeps for each token: it stands for a device that decodes a batch, so what is
measured is whether the pipeline (Ray, verification, writing, committing) keeps more of them busy, on any number of
cores. Each repeat runs every number of workers once, through the installed command; reported are the medians of the
ratios to one worker within a repeat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path


def collect_speed(folder: Path, workers: int, shards: int, seconds_per_token: float) -> float:
    """Tokens per second of the one collect phase of a run."""
    name = f"workers-{workers}"
    settings = {
        "rounds": 1,
        "cluster.backend": "ray",
        "cluster.num_cpus": 4,
        "cluster.max_shards_in_flight": 4 * workers,
        "rollout.workers": workers,
        "rollout.resources.num_cpus": 0.1,
        "rollout.prompts_per_shard": 1,
        "verify.workers": 2,
        "rollout.engine.seconds_per_token": seconds_per_token,
        "prompts.train.high": 40,
        "prompts.held_out.high": 40,
        "prompts.held_out.held_out": 4,
        "prompts.train.held_out": 4,
        "prompts.per_round": shards,
    }
    command = [str(Path(sys.executable).with_name("pawl")), "run", "fake-smoke"]
    command += [f"{key}={value}" for key, value in settings.items()]
    subprocess.run(
        [*command, "--name", name, "--runs-dir", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=600,
    )
    events = [
        json.loads(line)
        for line in (folder / name / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    begun, ended = (
        next(
            datetime.fromisoformat(e["at"])
            for e in events
            if (e["kind"], e["round"], e["phase"]) == (kind, 1, "collect")
        )
        for kind in ("phase_started", "phase_finished")
    )
    markers = (folder / name / "rounds" / "0001" / "trajectories").glob("*.json")
    tokens = sum(
        json.loads(marker.read_text(encoding="utf-8"))["summary"]["tokens"] for marker in markers
    )
    return float(tokens / (ended - begun).total_seconds())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--seconds-per-token", type=float, default=0.05)
    asked = parser.parse_args()
    speeds: dict[int, list[float]] = {n: [] for n in asked.workers}
    for repeat in range(asked.repeats):
        for workers in asked.workers:
            with tempfile.TemporaryDirectory() as folder:
                speed = collect_speed(Path(folder), workers, asked.shards, asked.seconds_per_token)
            speeds[workers].append(speed)
            print(f"repeat {repeat}: {workers} worker(s): {speed:.0f} tokens/s", flush=True)
    first = speeds[asked.workers[0]]
    for workers, found in speeds.items():
        ratio = statistics.median(b / a for a, b in zip(first, found, strict=True))
        print(f"{workers} worker(s): {statistics.median(found):.0f} tokens/s, {ratio:.2f}x")


if __name__ == "__main__":
    main()
