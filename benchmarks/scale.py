"""Growth of the collect phase: 10^3 to 10^6 trajectories in one round, with the scripted engine.

    python benchmarks/scale.py [--sizes 1000 10000] [--backend inline|ray] [--folder DIR]

For each size a driver process runs round 1 and is killed (SIGKILL) when the last shard has left its last stage, before
the phase is in the journal; a second one resumes it and is ended when collect is in the journal. Appends a line to
`benchmarks/scale.csv`: trajectories/s, the driver's resident memory before collect and at its peak, bytes of the
journal, seconds of the resume, and the share of the collect phase spent in fsync (inline, where all of it is ours).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SAMPLES = 16
PROMPTS_PER_SHARD = 64
TABLE = Path(__file__).with_name("scale.csv")
MAX_SECONDS = 7200.0


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--backend", choices=("inline", "ray"), default="inline")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the runs go; default a temporary folder"
    )
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive is not None:
        drive(given.drive)
        return
    for size in given.sizes:
        row = measure(size, given.backend, given.folder)
        print(json.dumps(row), flush=True)
        new = not TABLE.exists()
        with TABLE.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def config(size: int, backend: str, model: Path) -> dict[str, Any]:
    """One round of about `size` trajectories."""
    prompts = max(1, size // SAMPLES)
    high = 2 + math.isqrt(prompts + 24) + 1
    arithmetic = {"type": "arithmetic", "low": 2, "high": high, "held_out": 8}
    return {
        "rounds": 1,
        "policy": {"model": str(model), "dtype": "float32"},
        "prompts": {
            "train": arithmetic | {"split": "train"},
            "held_out": arithmetic | {"split": "held_out"},
            "per_round": prompts,
        },
        "rollout": {
            "engine": {"type": "fake"},
            "samples_per_prompt": SAMPLES,
            "prompts_per_shard": PROMPTS_PER_SHARD,
            "max_tokens": 48,
        },
        "verifiers": [{"type": "numeric_match"}],
        "preferences": {"type": "right_vs_wrong", "pairs_per_prompt": 2},
        "training": {"engine": {"type": "fake"}},
        "evaluation": {"samples_per_prompt": 1},
        "cluster": {"backend": backend, "num_cpus": 2},
        "tracking": {"enabled": False},
    }


def measure(size: int, backend: str, folder: Path | None) -> dict[str, Any]:
    """Run, kill, resume; what was seen."""
    from policies.storage.fake_model import write_fake_model

    home = Path(tempfile.mkdtemp(prefix=f"scale-{size}-", dir=folder))
    try:
        model = write_fake_model(home / "model", skill=0.4)
        tree = config(size, backend, model)
        (home / "config.json").write_text(json.dumps(tree), encoding="utf-8")
        (home / "first.json").write_text(json.dumps({"kill_after_shards": shards_of(tree)}))
        started = time.monotonic()
        _start(home)
        first = json.loads((home / "seen.json").read_text(encoding="utf-8"))
        (home / "first.json").unlink()
        again = time.monotonic()
        _start(home)
        resumed = json.loads((home / "seen.json").read_text(encoding="utf-8"))
        run = home / "run"
        made = tree["prompts"]["per_round"] * SAMPLES
        return {
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
            "backend": backend,
            "trajectories": made,
            "shards": shards_of(tree),
            "collect_seconds": round(first["collect_seconds"], 2),
            "trajectories_per_second": round(made / first["collect_seconds"], 1),
            "cpu_seconds": round(first["cpu_seconds"], 2),
            "cpu_ms_per_trajectory": round(1000 * first["cpu_seconds"] / made, 3),
            "fsync_seconds": round(first["fsync_seconds"], 2),
            "fsync_share": round(first["fsync_seconds"] / first["collect_seconds"], 3),
            "fsyncs": first["fsyncs"],
            "rss_before_mb": first["rss_before_mb"],
            "rss_peak_mb": first["rss_peak_mb"],
            "journal_bytes": (run / "journal.jsonl").stat().st_size,
            "events_bytes": (run / "events.jsonl").stat().st_size,
            "resume_seconds": round(resumed["collect_seconds"], 2),
            "resume_rss_peak_mb": resumed["rss_peak_mb"],
            "resume_total_seconds": round(time.monotonic() - again, 2),
            "total_seconds": round(time.monotonic() - started, 1),
            "load": round(os.getloadavg()[0], 1),
        }
    finally:
        shutil.rmtree(home, ignore_errors=True)


def shards_of(tree: dict[str, Any]) -> int:
    """Shards of round 1."""
    return -(-int(tree["prompts"]["per_round"]) // PROMPTS_PER_SHARD)


def _start(home: Path) -> None:
    command = [sys.executable, __file__, "--drive", str(home)]
    done = subprocess.run(command, timeout=MAX_SECONDS, check=False, capture_output=True, text=True)
    if done.returncode != -signal.SIGKILL:
        raise SystemExit(f"the driver ended with {done.returncode}:\n{done.stderr[-3000:]}")


# --- the driver process ---------------------------------------------------------------------------


def drive(home: Path) -> None:
    """Run or resume the run in `home` and kill this process when collect has come to the point wanted."""
    from orchestrator.config.run_config import RunConfig
    from orchestrator.driver.launch import resume_experiment, run_experiment
    from orchestrator.runs.folder import RunFolder
    from policies.storage.files import using

    folder = RunFolder(home / "run")
    first = home / "first.json"
    shards = json.loads(first.read_text())["kill_after_shards"] if first.exists() else None
    with using(timed_files()) as files:
        watch = Watch(home / "seen.json", shards, files)
        if folder.identity.exists():
            resume_experiment(folder, [watch])
        else:
            tree = json.loads((home / "config.json").read_text(encoding="utf-8"))
            run_experiment(RunConfig.model_validate(tree), folder, source="", observers=[watch])


def timed_files() -> Any:
    """The usual file layer with a clock on fsync."""
    from policies.storage.files import FileLayer

    class TimedFiles(FileLayer):
        seconds = 0.0
        count = 0

        def sync(self, path: Path) -> None:
            self._timed(super().sync, path)

        def sync_directory(self, path: Path) -> None:
            self._timed(super().sync_directory, path)

        def _timed(self, operation: Any, path: Path) -> None:
            started = time.perf_counter()
            operation(path)
            self.seconds += time.perf_counter() - started
            self.count += 1

    return TimedFiles()


class Watch:
    """Observes a run, writes down what it saw, and ends the process."""

    def __init__(self, path: Path, kill_after: int | None, files: Any) -> None:
        self.path, self.kill_after, self.files = path, kill_after, files
        self.left = 0
        self.started = 0.0
        self.before = (0.0, 0, 0.0, 0.0)
        self.peak = Peak()

    def __call__(self, event: Any) -> None:
        """An observer of events."""
        if event.round != 1 or event.phase != "collect":
            return
        if event.kind == "phase_started":
            self.started = time.monotonic()
            self.before = (self.files.seconds, self.files.count, resident_mb(), cpu_seconds())
            self.peak.start()
        elif event.kind == "shard_stage_finished" and event.detail["stage"] == "prefer":
            self.left += 1
            if self.kill_after is not None and self.left == self.kill_after:
                self.end()
        elif event.kind == "phase_finished":
            self.end()

    def end(self) -> None:
        """Write what was seen, and die as a killed process does."""
        seen = {
            "collect_seconds": time.monotonic() - self.started,
            "fsync_seconds": self.files.seconds - self.before[0],
            "fsyncs": self.files.count - self.before[1],
            "cpu_seconds": cpu_seconds() - self.before[3],
            "rss_before_mb": self.before[2],
            "rss_peak_mb": self.peak.stop(),
        }
        self.path.write_text(json.dumps(seen), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def cpu_seconds() -> float:
    """Processor time of this process and of its living children (the verifier), user and system."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if str(os.getpid()) in (path.parent.name, fields[1]):
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


class Peak(threading.Thread):
    """Samples the resident memory five times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._ended.wait(0.2):
            self.highest = max(self.highest, resident_mb())

    def stop(self) -> float:
        """The highest value seen, in MB."""
        self._ended.set()
        return max(self.highest, resident_mb())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
