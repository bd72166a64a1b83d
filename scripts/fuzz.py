"""Spoil configs, prompt files and model folders by seed, and look at how each is refused, or whether it runs.

Every case is a fork of one warm process in an empty folder: `pawl validate`, `pawl plan`, and for a share of what both
accept `pawl run`, one round on fakes. A case fails when it ends with anything but 0 or a refusal (2) in four parts,
leaves a file, or takes more than 10 s or 500 MB to refuse.

    python scripts/fuzz.py [--configs 1000] [--models 200] [--seed 1] [--runs 0.1] [--only KIND-NUMBER]

Exit code: 0 no case failed, 1 some did (each is named, and made again by --only).
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import fuzz_cases  # noqa: E402 - found beside this file
import fuzz_models  # noqa: E402

MAX_SECONDS = 10.0
MAX_MEGABYTES = 500
RUN_SECONDS = 60.0
_TRAIN = "".join(f'{{"prompt": "What is {i} plus 1?", "answer": {i + 1}}}\n' for i in range(6))
_HELD_OUT = '{"prompt": "What is 31 plus 4?", "answer": 35}\n'
_SLEEPERS = (
    ("seconds_per_call", "0.0"),
    ("seconds_per_token", "0.0"),
    ("seconds_per_step", "0.0"),
    ("diverge_in_round", "null"),
    ("fail_prompts_matching", "null"),
)
"""Settings of the fakes that are there to make a run fail or wait."""


@dataclass
class Outcome:
    """The result of one command."""

    code: int
    said: str
    seconds: float
    megabytes: float


@dataclass
class Tally:
    """Counts of a whole suite."""

    ends: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    largest: float = 0.0


def warm_up() -> dict[str, Any]:
    """Import what every case needs, once; returns the good config as a tree with every setting in it."""
    from orchestrator.config.run_config import RunConfig

    jsonl = {"type": "jsonl", "path": "./train.jsonl"}
    config = RunConfig.model_validate(
        {
            "rounds": 1,
            "policy": {"model": str(ROOT / "configs" / "fake-model"), "dtype": "float32"},
            "prompts": {
                "train": jsonl,
                "held_out": {**jsonl, "path": "./held_out.jsonl"},
                "per_round": 4,
            },
            "rollout": {"engine": "fake", "samples_per_prompt": 4, "max_tokens": 16},
            "verifiers": ["numeric_match"],
            "preferences": "right_vs_wrong",
            "training": {"engine": "fake", "precision": "fp32"},
            "cluster": {"backend": "inline"},
            "tracking": {"enabled": False},
        }
    )
    tree: dict[str, Any] = config.model_dump(mode="json")
    return tree


def make_case(kind: str, rng: random.Random, folder: Path, tree: dict[str, Any]) -> list[str]:
    """Write the files of a case into `folder`; returns the arguments after the command."""
    (folder / "train.jsonl").write_text(_TRAIN)
    (folder / "held_out.jsonl").write_text(_HELD_OUT)
    (folder / "c.yaml").write_text(fuzz_cases.flow(tree))
    if kind == "model":
        fuzz_models.good_model(folder / "m")
        fuzz_models.spoil_model(folder / "m", rng)
        return ["c.yaml", "policy.model=./m"]
    if kind == "prompts":
        name = rng.choice(("train.jsonl", "train.jsonl", "p.parquet"))
        content = fuzz_cases.odd_parquet(rng) if name == "p.parquet" else fuzz_cases.odd_rows(rng)
        (folder / name).write_bytes(content)
        source = f"{{type: {'parquet' if name == 'p.parquet' else 'jsonl'}, path: ./{name}}}"
        return ["c.yaml", f"prompts.train={source}", "prompts.per_round=1"]
    text = rng.choice((fuzz_cases.flow(tree), rng.choice(fuzz_cases.SHIPPED).read_text()))
    way = rng.random()
    if way < 0.6:
        content = fuzz_cases.odd_tree(tree, rng).encode("utf-8", "surrogatepass")
    elif way < 0.8:
        content = fuzz_cases.odd_bytes(text.encode(), rng)
    else:
        content = fuzz_cases.yaml_trick(text, rng)
    (folder / "c.yaml").write_bytes(content)
    return ["c.yaml"]


def command(arguments: Sequence[str], folder: Path, limit: float) -> Outcome:
    """Run one command of ours in a fork of this process, in `folder`."""
    output = folder.parent / "output"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_command(arguments, folder, output)
    code, used = None, None
    while code is None:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - started > limit:
            os.killpg(child, signal.SIGKILL)
            _, _, used = os.wait4(child, 0)
            code = -9
        else:
            time.sleep(0.005)
    assert used is not None
    said = output.read_text(encoding="utf-8", errors="replace")
    return Outcome(code, said, time.monotonic() - started, used.ru_maxrss / 1024)


def _be_command(arguments: Sequence[str], folder: Path, output: Path) -> None:
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(HF_HUB_OFFLINE="1", PAWL_CACHE=str(folder.parent / "no-cache"))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["pawl", *arguments]
        from orchestrator.cli.app import main

        main()
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def names(folder: Path) -> set[str]:
    """Everything in a folder but Python's own cache."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def faults(outcome: Outcome, *, refused: bool) -> list[str]:
    """Return what is wrong with how a command ended."""
    found = []
    if outcome.code not in (0, 2):
        found.append(f"exit {outcome.code}")
    if "Traceback" in outcome.said or "internal error" in outcome.said:
        found.append("internal error")
    if outcome.code == 2 and (
        "Fix: " not in " ".join(outcome.said.split()) or len(outcome.said) > 100_000
    ):
        found.append("not in four parts")
    if refused and outcome.seconds > MAX_SECONDS:
        found.append(f"{outcome.seconds:.1f} s")
    if refused and outcome.megabytes > MAX_MEGABYTES:
        found.append(f"{outcome.megabytes:.0f} MB")
    return found


def try_case(name: str, seed: int, tree: dict[str, Any], share: float, tally: Tally) -> None:
    """Make one case, give it to the commands, and count how it ended."""
    kind = name.partition("-")[0]
    rng = random.Random(f"{seed}-{name}")  # nosec B311 # cases that can be made again
    root = Path(tempfile.mkdtemp(prefix="pawl-fuzz-"))
    folder = root / "here"
    folder.mkdir()
    here = Path.cwd()
    try:
        arguments = make_case(kind, rng, folder, tree)
        os.chdir(here)
        before = names(folder)
        text = (folder / "c.yaml").read_text(encoding="utf-8", errors="replace")
        runs = rng.random() < share and all(
            f'"{word}": {off}' in text or kind != "config" for word, off in _SLEEPERS
        )
        found: list[str] = []
        end = "accepted"
        for verb in ("validate", "plan", *(("run",) if runs else ())):
            done = command(
                [verb, *arguments], folder, RUN_SECONDS if verb == "run" else 3 * MAX_SECONDS
            )
            found = [f"{verb}: {fault}" for fault in faults(done, refused=verb != "run")]
            if verb != "run":
                tally.slowest = max(tally.slowest, done.seconds)
                tally.largest = max(tally.largest, done.megabytes)
            left = names(folder) - before
            if left and (verb != "run" or done.code == 2):
                found.append(f"{verb} left {sorted(left)[:3]}")
            if found or done.code != 0:
                end = "failed" if found else f"refused by {verb}"
                break
            end = "ran" if verb == "run" else "accepted"
        tally.ends[f"{kind} {end}"] += 1
        if found:
            last = " | ".join(done.said.strip().splitlines()[-3:])
            tally.failures.append(f"{name} (seed {seed}): {', '.join(found)}: {last[:400]}")
            print(tally.failures[-1], flush=True)
    finally:
        os.chdir(here)
        shutil.rmtree(root, ignore_errors=True)


def suite(
    *, configs: int, models: int, seed: int, share: float, seconds: float, only: str | None = None
) -> Tally:
    """Try all cases, or as many as `seconds` allow: a third of `configs` are prompt files."""
    tree = warm_up()
    deadline = time.monotonic() + seconds
    tally = Tally()
    cases = [f"{'prompts' if i % 3 == 2 else 'config'}-{i}" for i in range(configs)]
    cases += [f"model-{i}" for i in range(models)]
    random.Random(seed).shuffle(cases)  # nosec B311 # cases that can be made again
    for case in [only] if only else cases:
        if time.monotonic() > deadline:
            break
        try_case(case, seed, tree, share, tally)
    return tally


def main() -> int:
    """Run the suite that the command line asks for, and print what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--configs", type=int, default=1000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=float, default=0.1, help="share of accepted cases that run")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no case after so long")
    parser.add_argument("--only", help="one case, e.g. config-17")
    given = parser.parse_args()
    began = time.monotonic()
    tally = suite(
        configs=given.configs,
        models=given.models,
        seed=given.seed,
        share=given.runs,
        seconds=given.seconds,
        only=given.only,
    )
    for end, count in sorted(tally.ends.items()):
        print(f"{count:6d} {end}")
    print(
        f"seed {given.seed}: {sum(tally.ends.values())} cases, {len(tally.failures)} failed; "
        f"slowest {tally.slowest:.1f} s, largest {tally.largest:.0f} MB; {time.monotonic() - began:.0f} s in all"
    )
    return 1 if tally.failures or not tally.ends else 0  # nothing tried shows nothing


if __name__ == "__main__":
    sys.exit(main())
