"""Crashes whole runs at chosen file operations, resumes them, and compares the trees; one JSON line per case.

Usage: crash_runner.py BASE ROUNDS PARALLEL < cases
A case is `MODE:POINT[,POINT...]` on one line of standard input: `before:17`, `torn:40`, `power:99`, or with several
points a crash, a resume that crashes at its own n-th operation, and so on. A disk that fails instead of a process that
dies: `half-ENOSPC:31`, `lasting-EIO:7` (see `DiskFault`), and `read-once:12`, `read-lasting:12` for the n-th time that
something below the run folder is opened to read. The first line of output is about the uninterrupted run. This process
imports everything once, runs nothing itself, and forks for each drive.
Verifiers work inside the driver here, and their clocks stand still: starting an interpreter for each of thousands of
drives would take most of the time.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import workers.verify.worker as verify_worker
from orchestrator.cli.output import exit_code_of
from orchestrator.config.run_config import RunConfig
from orchestrator.driver.launch import resume_experiment, run_experiment
from orchestrator.runs.folder import RunFolder
from policies.base.component import create
from policies.base.errors import PawlError
from policies.base.records import Prompt, Trajectory, Verdict
from policies.storage import files
from policies.storage.fake_model import write_fake_model
from policies.storage.faulty_files import (
    EXIT_CODE,
    CountingFiles,
    CrashingFiles,
    CrashMode,
    DiskFault,
    FailingDisk,
    FailingReads,
)
from workers.verify.isolated_verifier import IsolatedVerifier

for _late in (
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "orchestrator.runs.report",
    "workers.rollout.engines.fake",
    "workers.rollout.strategies.independent",
    "workers.training.engines.fake",
    "workers.verify.verifiers.numeric_match",
):  # what a run would import late is imported once, before the forks
    importlib.import_module(_late)


class InDriver(IsolatedVerifier):
    """A verifier without a process of its own."""

    def submit(self, items: Sequence[tuple[Prompt, Trajectory]]) -> Future[list[Verdict]]:
        verifier = create(self.config)
        done: Future[list[Verdict]] = Future()
        done.set_result([verifier.verify(prompt, trajectory) for prompt, trajectory in items])
        return done


verify_worker.IsolatedVerifier = InDriver  # type: ignore[attr-defined]

CLOCKS = ("events.jsonl", "driver.json", "epochs", "report.html", "report.md", "activity.json")
"""What tells when things happened, or how often a driver began: not the run's result."""
UNTOLD = 70
"""How a process ends whose error is none of ours: a user would read of an internal error."""
VOLATILE = {"seconds", "run_id", "created_at", "seal"}
"""Keys of JSON files; the seal of a marker covers the seconds in its summary."""


def config(base: Path, rounds: int) -> RunConfig:
    """The smallest run that has every phase: one shard of two prompts a round."""
    arithmetic = {"type": "arithmetic", "low": 2, "high": 4, "held_out": 1}
    return RunConfig.model_validate(
        {
            "rounds": rounds,
            "policy": {"model": str(base / "model")},
            "prompts": {
                "train": arithmetic | {"split": "train"},
                "held_out": arithmetic | {"split": "held_out"},
                "per_round": 2,
            },
            "rollout": {
                "engine": {"type": "fake"},
                "samples_per_prompt": 6,
                "prompts_per_shard": 2,
            },
            "verifiers": [{"type": "numeric_match"}],
            "preferences": {"type": "right_vs_wrong"},
            "training": {"engine": {"type": "fake"}, "optimizer": "carry"},
            "evaluation": {"samples_per_prompt": 2},
            "cluster": {"backend": "inline"},
            "tracking": {"enabled": False},
        }
    )


def drive(
    settings: RunConfig, folder: RunFolder, layer: files.FileLayer, *, reads: str = ""
) -> int:
    """Start or resume the run in a process of its own; returns how that ended. `reads`: what of them fails."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    failing = _failing_reads(folder, reads)
    code = 0
    try:
        with files.using(layer):
            if folder.identity.exists():
                resume_experiment(folder)
            else:
                run_experiment(settings, folder, source="rounds: 2\n")
    except BaseException as error:  # the parent sees only the code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        code = exit_code_of(error) if isinstance(error, PawlError) else UNTOLD
    seen = 0 if failing is None else failing.count
    if failing is not None:
        failing.fail_at, failing.lasting = 0, False
    if isinstance(layer, CountingFiles) and reads == "count":
        facts = {"operations": layer.log, "reads": seen}
        (folder.path.parent / "counted").write_text(json.dumps(facts))
    if getattr(layer, "has_failed", False) or (failing is not None and failing.has_failed):
        _failed_mark(folder).touch()
    if code == 0:
        snapshot = json.dumps(dict(tree(folder.path)))
        folder.path.with_suffix(".tree").write_text(snapshot, encoding="utf-8")
    os._exit(code)


def _failing_reads(folder: RunFolder, reads: str) -> FailingReads | None:
    if not reads:
        return None
    mode, _, point = reads.partition(":")
    return FailingReads(folder.path, int(point or 0), lasting=mode == "read-lasting")


def _failed_mark(folder: RunFolder) -> Path:
    return folder.path.with_suffix(".failed")


def tree(root: Path) -> Iterator[tuple[str, str]]:
    """Every path of a run with the digest of its content, without clocks."""
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.split("/")[0] in CLOCKS or path.name.endswith(".reason.json"):
            continue
        if path.is_dir():
            yield name, "folder"
            continue
        content = path.read_bytes().replace(str(root).encode(), b"RUN")
        if path.suffix == ".json":
            content = json.dumps(timeless(json.loads(content)), sort_keys=True).encode()
        yield name, hashlib.sha256(content).hexdigest()


def timeless(value: Any) -> Any:
    """JSON without clocks."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [timeless(v) for v in value]
    return value


def differences(folder: RunFolder, expected: dict[str, str]) -> list[str]:
    """Names that are missing, too many or different."""
    found: dict[str, str] = json.loads(folder.path.with_suffix(".tree").read_text())
    return sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))


def one(settings: RunConfig, base: Path, case: str, expected: dict[str, str]) -> dict[str, Any]:
    """Crash, or let the disk fail, as the case says; resume, compare."""
    mode, _, numbers = case.partition(":")
    folder = RunFolder(base / case.replace(":", "-").replace(",", "-") / "run")
    folder.path.parent.mkdir()
    fired, ended = [], []
    for point in map(int, numbers.split(",")):
        if mode in ("before", "torn", "power"):
            ended.append(drive(settings, folder, CrashingFiles(point, checked(mode))))
            fired.append(ended[-1] == EXIT_CODE)
            continue
        if mode.startswith("read-"):
            ended.append(drive(settings, folder, files.FileLayer(), reads=f"{mode}:{point}"))
        else:
            ended.append(drive(settings, folder, disk(mode, point)))
        fired.append(_failed_mark(folder).exists())
        _failed_mark(folder).unlink(missing_ok=True)
    code = 0 if ended[-1] == 0 else drive(settings, folder, files.FileLayer())
    differing = differences(folder, expected) if code == 0 else []
    shutil.rmtree(folder.path.parent)
    return {"case": case, "fired": fired, "ended": ended, "code": code, "differences": differing}


def disk(mode: str, point: int) -> FailingDisk:
    """A failing disk by the name of its mode, e.g. `half-ENOSPC`."""
    fault, _, code = mode.partition("-")
    known: tuple[DiskFault, ...] = ("short", "half", "once", "lasting")
    for name in known:
        if fault == name:
            return FailingDisk(point, name, getattr(errno, code or "ENOSPC"))
    raise ValueError(mode)


def checked(mode: str) -> CrashMode:
    """A crash mode by name."""
    for known in ("before", "torn", "power"):
        if mode == known:
            return known
    raise ValueError(mode)


def main() -> None:
    """Run the uninterrupted run, then all cases, `PARALLEL` at a time."""
    base, rounds, parallel = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    write_fake_model(base / "model", skill=0.3)
    settings = config(base, rounds)
    whole = RunFolder(base / "whole" / "run")
    whole.path.parent.mkdir()
    code = drive(settings, whole, CountingFiles(), reads="count")
    counted = json.loads((whole.path.parent / "counted").read_text())
    expected: dict[str, str] = json.loads(whole.path.with_suffix(".tree").read_text())
    os.write(1, json.dumps({"code": code, **counted}).encode() + b"\n")
    cases = [line.strip() for line in sys.stdin if line.strip()]
    workers = []
    for index in range(parallel):
        pid = os.fork()
        if not pid:
            for case in cases[index::parallel]:
                line = json.dumps(one(settings, base, case, expected)) + "\n"
                os.write(1, line.encode())  # one write: lines of several processes do not mix
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
