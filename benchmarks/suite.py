"""Does it learn on tasks that it was not tuned for? Runs the config's defaults on small tasks of different kinds.

    python benchmarks/suite.py [--tasks ...] [--arms dpo kto coin] [--seeds 0 1] [--minutes 10] [--runs-dir DIR]
    python benchmarks/suite.py --table        # only what was measured
    python benchmarks/suite.py --set training.learning_rate=5e-6 --label smaller-steps

A run is ended in order (SIGINT) when its minutes are up, and counts with the policy that serves then. Finished runs
stand in `suite.csv` and are not made again, so that the suite can be spread over days. Tasks marked as held out had no
part in the choice of the defaults.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import signal
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiment import markdown, pawl
from suite_tasks import ANIMALS, COLORS, DAYS, NAMES, PLACES, THINGS, WORDS

HERE = Path(__file__).parent
RESULTS = HERE / "suite.csv"
_GRACE_SECONDS = 120
"""After SIGINT, the time in which a run ends the shard or step that it is at."""


@dataclass(frozen=True)
class Task:
    """A task of the suite: where its prompts come from and what grades them."""

    verifier: str
    """In YAML."""
    source: str = ""
    """A reasoning-gym generator with its parameters in YAML; empty: the generator of this name in suite_tasks.py."""
    is_held_out: bool = False
    """Whether it had no part in choosing the defaults."""

    def overrides(self, name: str) -> list[str]:
        """Return what a run of the task sets besides `suite.yaml`."""
        if not self.source:
            where = [f"prompts.{part}.task={name}" for part in ("train", "held_out")]
        else:
            sizes = {"train": "size: 480, seed: 1", "held_out": "size: 32, seed: 2"}
            where = [
                f"prompts.{part}={{type: reasoning_gym, {self.source}, {size}}}"
                for part, size in sizes.items()
            ]
            # Two seeds of a small generator may meet; what is in both is trained on in no other suite either.
            where.append("prompts.allow_overlap=false")
        return [*where, f"verifiers=[{self.verifier}]"]


def _one_of(words: str) -> str:
    """A verifier that reads the last of the words."""
    pattern = rf"(?P<answer>\b({words})\b)"
    return f"{{type: regex_match, pattern: '{pattern}', ignore_case: true}}"


_NUMBER = "{type: numeric_match}"
_COLORS = "|".join(COLORS)
TASKS: dict[str, Task] = {
    "weekday": Task(_one_of("|".join(DAYS))),
    "largest": Task(_NUMBER),
    "apples": Task(_NUMBER),
    "position": Task(_one_of(_COLORS)),
    "pattern": Task(_one_of(_COLORS)),
    "animal": Task(_one_of("|".join(ANIMALS + THINGS))),
    "where": Task(_one_of("|".join(PLACES))),
    "who": Task(_one_of("|".join(NAMES))),
    "claim": Task(_one_of("yes|no"), is_held_out=True),
    "longest": Task(_one_of("|".join(WORDS)), is_held_out=True),
    "chain_sum": Task(
        _NUMBER,
        source="dataset: chain_sum, parameters: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2}",
        is_held_out=True,
    ),
}
"""Small tasks, no two alike in kind, on which the demo model is right at 0.04 to 0.4, and at 8 tries above 0.3."""
_COIN = f"[{{type: '{HERE / 'coin_flip.py'}:score', name: coin}}]"
ARMS: dict[str, list[str]] = {
    "dpo": [],
    "kto": ["preferences={type: thresholded}", "training.loss={type: kto}"],
    "coin": [f"verifiers={_COIN}", "acceptance={type: always}"],
}


@dataclass(frozen=True)
class Row:
    """A finished run, as `suite.csv` holds it."""

    label: str
    task: str
    arm: str
    seed: int
    rounds: int
    """Rounds that finished within the time, round 0 not counted."""
    rejected: int
    base: float
    base_se: float
    final: float
    """Held-out pass@1 of the policy that serves at the end."""
    final_se: float
    base_at_8: float
    final_at_8: float
    truncated_before: float
    truncated_after: float
    examples: float
    """Mean number of training examples a round."""
    seconds: float


def known(path: Path = RESULTS) -> list[Row]:
    """Runs measured before."""
    if not path.exists():
        return []
    types = {f.name: f.type for f in fields(Row)}
    convert = {"str": str, "int": int, "float": float}
    with path.open(newline="", encoding="utf-8") as handle:
        return [
            Row(**{name: convert[str(types[name])](value) for name, value in row.items()})
            for row in csv.DictReader(handle)
        ]


def measure(key: tuple[str, str, str, int], arguments: argparse.Namespace) -> None:
    """Make one run within its time, and append what came of it; nothing when the file has it."""
    label, task, arm, seed = key
    if any((r.label, r.task, r.arm, r.seed) == key for r in known()):
        return
    name = "-".join((label, task, arm, str(seed)))
    overrides = [*TASKS[task].overrides(task), *ARMS[arm], f"seed={seed}", *arguments.set]
    if arm == "coin":
        overrides.append(f"evaluation.verifiers=[{TASKS[task].verifier}]")
    folder = arguments.runs_dir / name
    command = [pawl(), "run", str(HERE / "suite.yaml"), *overrides]
    command += ["--name", name, "--runs-dir", str(arguments.runs_dir), "--or-resume"]
    process = subprocess.Popen(command)
    try:
        code = process.wait(timeout=60 * arguments.minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=_GRACE_SECONDS)
    if code not in (0, 130):
        raise SystemExit(f"{' '.join(command)} ended with {code}; see `pawl doctor {folder}`")
    append(row_of(folder, key))


def row_of(folder: Path, key: tuple[str, str, str, int]) -> Row:
    """Return what a run came to, from `pawl status --json` alone."""
    command = [pawl(), "status", str(folder), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rounds: list[dict[str, Any]] = json.loads(done.stdout)["rounds"]
    serving = [r for r in rounds if r["status"] != "rejected"][-1]
    first, last = rounds[0]["metrics"], serving["metrics"]
    examples = [r["metrics"].get("prefer/examples", 0.0) for r in rounds[1:]]
    label, task, arm, seed = key
    return Row(
        label=label,
        task=task,
        arm=arm,
        seed=seed,
        rounds=len(rounds) - 1,
        rejected=sum(r["status"] == "rejected" for r in rounds),
        base=first["eval/pass@1"],
        base_se=first["eval/pass@1_se"],
        final=last["eval/pass@1"],
        final_se=last["eval/pass@1_se"],
        base_at_8=first["eval/pass@8"],
        final_at_8=last["eval/pass@8"],
        truncated_before=first["eval/truncated_share"],
        truncated_after=last["eval/truncated_share"],
        examples=sum(examples) / max(len(examples), 1),
        seconds=sum(sum(r["seconds"].values()) for r in rounds),
    )


def append(row: Row, path: Path = RESULTS) -> None:
    """Add a run to the file."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [f.name for f in fields(Row)])
        if fresh:
            writer.writeheader()
        values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
        writer.writerow(values)


def table(rows: list[Row]) -> str:
    """A line for every run, then the mean gain of every arm with its standard error over tasks."""
    body = [
        [
            r.label,
            r.task + (" (held out)" if TASKS[r.task].is_held_out else ""),
            r.arm,
            str(r.seed),
            f"{r.base:.2f} +- {r.base_se:.2f}",
            f"{r.final:.2f} +- {r.final_se:.2f}",
            f"{r.final - r.base:+.2f}",
            f"{r.base_at_8:.2f} -> {r.final_at_8:.2f}",
            f"{r.truncated_before:.2f} -> {r.truncated_after:.2f}",
            f"{r.rounds} ({r.rejected})",
            f"{r.examples:.0f}",
            f"{r.seconds:.0f}",
        ]
        for r in sorted(rows, key=lambda r: (r.label, r.arm, list(TASKS).index(r.task), r.seed))
    ]
    header = ["label", "task", "arm", "seed", "base", "final", "gain", "pass@8", "truncated"]
    header += ["rounds (rejected)", "examples", "seconds"]
    return markdown(header, body) + "\n\n" + "\n".join(summaries(rows))


def summaries(rows: list[Row]) -> list[str]:
    """Mean gain by label, arm and kind of task: seeds of a task are averaged first, tasks are the sample."""
    found = []
    for label, arm in sorted({(r.label, r.arm) for r in rows}):
        for held_out in (False, True):
            own = [r for r in rows if (r.label, r.arm) == (label, arm)]
            own = [r for r in own if TASKS[r.task].is_held_out is held_out]
            tasks = sorted({r.task for r in own})
            if not tasks:
                continue
            gains = [_mean([r.final - r.base for r in own if r.task == task]) for task in tasks]
            spread = math.sqrt(
                sum((g - _mean(gains)) ** 2 for g in gains) / max(len(gains) - 1, 1) / len(gains)
            )
            which = "held-out tasks" if held_out else "tasks of the choice"
            found.append(
                f"- {label}, {arm}, {len(tasks)} {which}: mean gain {_mean(gains):+.3f} +- {spread:.3f}"
            )
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=["dpo"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="time of a run")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings"
    )
    parser.add_argument("--label", default="defaults", help="name of the settings in the table")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    arguments = parser.parse_args()
    if not arguments.table:
        for arm in arguments.arms:
            for seed in arguments.seeds:
                for task in arguments.tasks:
                    measure((arguments.label, task, arm, seed), arguments)
    print(table(known()))


if __name__ == "__main__":
    main()
