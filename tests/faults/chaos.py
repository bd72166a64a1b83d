"""Experiment after experiment under random faults of the table, for hours: what `scripts/chaos` runs.

Every experiment is broken by a random row in a random phase, often again while it is resumed, then finished, proved
whole by `pawl verify` and compared with the same experiment in peace. Prints a line for each and a table at the end;
exit code 1 when anything was lost, double or different, or did not end in time; such a folder is kept and named.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.play import Stage, can_run, play
from tests.faults.scene import StillRunningError
from tests.faults.table import FAULTS

RAY_SHARE = 0.06
"""Part of the experiments that runs on Ray actors: each takes ten times as long as one without it."""
_RAY = ("ray", "own ray", "memory group")
AGAIN_SHARE = 0.4
"""Part of the experiments whose driver is killed again while it resumes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run for the time asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Breaks experiments and counts what is lost."
    )
    parser.add_argument("--hours", type=float, required=True, help="how long, e.g. 0.2")
    parser.add_argument("--seed", type=int, default=0, help="the same seed breaks the same things")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    given = parser.parse_args(arguments)
    rows = [fault for fault in FAULTS if given.only in fault.name and can_run(fault)]
    for stop in (signal.SIGINT, signal.SIGTERM):  # also when a shell started it in the background
        signal.signal(stop, signal.default_int_handler)
    home = Path(tempfile.mkdtemp(prefix="pawl-chaos-"))
    chosen = random.Random(given.seed)
    tally = Tally()
    deadline = time.monotonic() + given.hours * 3600
    with ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        stage = Stage(home / "shared", stack)
        number = 0
        while time.monotonic() < deadline:
            number += 1
            fault = _choose(rows, chosen)
            phase, seed = chosen.choice(fault.phases), chosen.getrandbits(32)
            tally.play(stage, home / f"{number:05d}", fault, phase, seed)
    tally.print(given.seed)
    if tally.lost or tally.unended:
        return 1
    shutil.rmtree(home, ignore_errors=True)
    return 0


def say(line: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _choose(rows: Sequence[Fault], chosen: random.Random) -> Fault:
    on_ray = [fault for fault in rows if fault.needs in _RAY]
    others = [fault for fault in rows if fault.needs not in _RAY]
    if not others or (on_ray and chosen.random() < RAY_SHARE):
        return chosen.choice(on_ray)
    return chosen.choice(others)


class Tally:
    """What was injected and what became of it, by row."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.experiments = 0
        self.injected: Counter[str] = Counter()
        self.resumed: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.unended: Counter[str] = Counter()

    def play(self, stage: Stage, home: Path, fault: Fault, phase: str, seed: int) -> None:
        """One experiment."""
        self.experiments += 1
        started = time.monotonic()
        scene = stage.scene(home, fault, seed)
        try:
            play(scene, fault, phase, again=random.Random(seed).random() < AGAIN_SHARE)
        except (
            Exception
        ) as error:  # of any kind: this experiment did not come through, the others go on
            is_late = isinstance(error, StillRunningError)
            (self.unended if is_late else self.lost)[fault.name] += 1
            say(f"{'NOT ENDED' if is_late else 'LOST'} {fault.name}, {phase}, seed {seed}: {home}")
            say(f"{type(error).__name__}: {error}")
        else:
            self.resumed[fault.name] += scene.num_fired
            shutil.rmtree(home, ignore_errors=True)
        self.injected[fault.name] += scene.num_fired
        seconds = time.monotonic() - started
        say(
            f"{self.experiments:5} {fault.name} ({phase}): {scene.num_fired} faults, {seconds:.1f} s"
        )

    def print(self, seed: int) -> None:
        """The table."""
        say(f"\n{'fault':<44}{'injected':>9}{'resumed':>9}{'lost':>6}{'not ended':>11}")
        for name in sorted(self.injected | self.lost | self.unended):
            counts = f"{self.injected[name]:>9}{self.resumed[name]:>9}{self.lost[name]:>6}"
            say(f"{name:<44}{counts}{self.unended[name]:>11}")
        minutes = (time.monotonic() - self.started) / 60
        say(
            f"seed {seed}, {minutes:.1f} minutes, {self.experiments} experiments: {self.injected.total()} faults "
            f"injected, {self.resumed.total()} resumed, {self.lost.total()} experiments lost, "
            f"{self.unended.total()} did not end in time"
        )


if __name__ == "__main__":
    sys.exit(main())
