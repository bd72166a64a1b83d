"""A run that dies at any file operation, half-way through a write, or by a power failure ends byte-identical.

Left out of the comparison are clocks only (see `crash_runner.CLOCKS` and `VOLATILE`): events, the heartbeat, how
often a driver began, the report, and `seconds`. The short form crashes at every n-th operation of a one-round run;
the long one at every operation of a two-round run in all three ways, and 200 times twice or three times in a row.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

RUNNER = Path(__file__).with_name("crash_runner.py")
SEED = 0


def crash_all(
    rounds: int, choose: Callable[[list[str]], list[str]], *, timeout: float
) -> tuple[list[str], list[dict[str, Any]]]:
    """Run the cases that `choose` picks given the operations of the whole run."""
    first, found = run_cases(rounds, lambda first: choose(first["operations"]), timeout=timeout)
    return first["operations"], found


def run_cases(
    rounds: int, choose: Callable[[dict[str, Any]], list[str]], *, timeout: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the cases that `choose` picks given what is known of the whole run: its `operations`, how many `reads`.

    In memory where that is possible: power failures are played, so fsync need not wait for a disk thousands of times.
    """
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pawl-crash-", dir=place) as folder:
        base = Path(folder)
        with (base / "stderr").open("w") as stderr, _runner(base, rounds, stderr) as runner:
            limit = threading.Timer(timeout, os.killpg, (runner.pid, signal.SIGKILL))
            limit.start()
            try:
                first, found = _answers(runner, choose)
            finally:
                limit.cancel()
        assert runner.returncode == 0, (base / "stderr").read_text()[-3000:]
    return first, found


def _runner(base: Path, rounds: int, stderr: TextIO) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(RUNNER), str(base), str(rounds), str(min(4, os.cpu_count() or 1))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=RUNNER.parents[2],
        env=os.environ | {"PYTHONPATH": str(RUNNER.parents[2])},
        start_new_session=True,
    )


def _answers(
    runner: subprocess.Popen[str], choose: Callable[[dict[str, Any]], list[str]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert runner.stdin is not None
    assert runner.stdout is not None
    first: dict[str, Any] = json.loads(runner.stdout.readline() or '{"code": "no answer"}')
    assert first["code"] == 0
    cases = choose(first)
    runner.stdin.write("\n".join(cases))
    runner.stdin.close()
    found = [json.loads(line) for line in runner.stdout]
    assert sorted(f["case"] for f in found) == sorted(cases), "every case answered"
    return first, found


def wrong(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [f for f in found if f["code"] or f["differences"]]


def test_a_run_that_dies_at_any_operation_ends_byte_identical() -> None:
    def choose(operations: list[str]) -> list[str]:
        chosen = random.Random(SEED)
        cases = [f"before:{n}" for n in range(3, len(operations) + 1, 17)]
        cases += [f"{mode}:{chosen.randint(1, len(operations))}" for mode in ["torn", "power"] * 3]
        cases += [f"before:{chosen.randint(1, len(operations))},{chosen.randint(1, 60)}"] * 3
        return sorted(set(cases))

    operations, found = crash_all(1, choose, timeout=280)
    assert wrong(found) == []
    assert all(f["fired"][0] for f in found), "a case without its crash proves nothing"
    assert len(operations) > 200


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", ["before", "torn", "power"])
def test_every_operation_of_two_rounds(mode: str) -> None:
    def choose(operations: list[str]) -> list[str]:
        return [f"{mode}:{n}" for n in range(1, len(operations) + 1)]

    operations, found = crash_all(2, choose, timeout=7000)
    assert wrong(found) == []
    assert all(f["fired"][0] for f in found)
    assert len(found) == len(operations) > 350


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_double_and_triple_crashes() -> None:
    def choose(operations: list[str]) -> list[str]:
        chosen = random.Random(SEED)
        cases: set[str] = set()
        while len(cases) < 200:
            points = [chosen.randint(1, len(operations))]
            points += [chosen.randint(1, 120) for _ in range(chosen.choice((1, 2)))]
            mode = chosen.choice(("before", "before", "torn", "power"))
            cases.add(f"{mode}:{','.join(map(str, points))}")
        return sorted(cases)

    _, found = crash_all(2, choose, timeout=7000)
    assert wrong(found) == []
    again = sum(1 for f in found if sum(f["fired"]) > 1)
    assert again > 120, "most of them must have crashed more than once"
