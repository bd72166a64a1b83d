"""A run that dies at any file operation, half-way through a write, or by a power failure ends byte-identical.

Left out of the comparison are clocks only (see `crash_runner.CLOCKS` and `VOLATILE`): events, the heartbeat, how
often a driver began, the report, and `seconds`. The short form crashes at every n-th operation of a one-round run;
the long one at every operation of a two-round run in all three ways, and 200 times twice or three times in a row.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

RUNNER = Path(__file__).with_name("crash_runner.py")
SEED = 0


def crash_all(
    base: Path, rounds: int, choose: Callable[[list[str]], list[str]], *, timeout: float
) -> tuple[list[str], list[dict[str, Any]]]:
    """Run the cases that `choose` picks given the operations of the whole run."""
    first, found = run_cases(
        base, rounds, lambda first: choose(first["operations"]), timeout=timeout
    )
    return first["operations"], found


def run_cases(
    base: Path,
    rounds: int,
    choose: Callable[[dict[str, Any]], list[str]],
    *,
    timeout: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the cases that `choose` picks given what is known of the whole run: its `operations`, how many `reads`."""
    base.mkdir(exist_ok=True)
    parallel = min(4, os.cpu_count() or 1)
    errors = base / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(RUNNER), str(base), str(rounds), str(parallel)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=RUNNER.parents[2],
            env=os.environ | {"PYTHONPATH": str(RUNNER.parents[2])},
        ) as runner,
    ):
        assert runner.stdin is not None
        assert runner.stdout is not None
        limit = threading.Timer(timeout, runner.kill)
        limit.start()
        try:
            line = runner.stdout.readline()
            first: dict[str, Any] = json.loads(line) if line else {"code": "no answer"}
            assert first["code"] == 0, errors.read_text()[-3000:]
            cases = choose(first)
            runner.stdin.write("\n".join(cases))
            runner.stdin.close()
            found = [json.loads(line) for line in runner.stdout]
            assert runner.wait() == 0, errors.read_text()[-3000:]
        finally:
            limit.cancel()
    assert sorted(f["case"] for f in found) == sorted(cases), "every case answered"
    return first, found


def wrong(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [f for f in found if f["code"] or f["differences"]]


def test_a_run_that_dies_at_any_operation_ends_byte_identical(tmp_path: Path) -> None:
    def choose(operations: list[str]) -> list[str]:
        chosen = random.Random(SEED)
        cases = [f"before:{n}" for n in range(3, len(operations) + 1, 17)]
        cases += [f"{mode}:{chosen.randint(1, len(operations))}" for mode in ["torn", "power"] * 3]
        cases += [f"before:{chosen.randint(1, len(operations))},{chosen.randint(1, 60)}"] * 3
        return sorted(set(cases))

    operations, found = crash_all(tmp_path, 1, choose, timeout=280)
    assert wrong(found) == []
    assert all(f["fired"][0] for f in found), "a case without its crash proves nothing"
    assert len(operations) > 200


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", ["before", "torn", "power"])
def test_every_operation_of_two_rounds(tmp_path: Path, mode: str) -> None:
    def choose(operations: list[str]) -> list[str]:
        return [f"{mode}:{n}" for n in range(1, len(operations) + 1)]

    operations, found = crash_all(tmp_path, 2, choose, timeout=7000)
    assert wrong(found) == []
    assert all(f["fired"][0] for f in found)
    assert len(found) == len(operations) > 350


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_double_and_triple_crashes(tmp_path: Path) -> None:
    def choose(operations: list[str]) -> list[str]:
        chosen = random.Random(SEED)
        cases: set[str] = set()
        while len(cases) < 200:
            points = [chosen.randint(1, len(operations))]
            points += [chosen.randint(1, 120) for _ in range(chosen.choice((1, 2)))]
            mode = chosen.choice(("before", "before", "torn", "power"))
            cases.add(f"{mode}:{','.join(map(str, points))}")
        return sorted(cases)

    _, found = crash_all(tmp_path, 2, choose, timeout=7000)
    assert wrong(found) == []
    again = sum(1 for f in found if sum(f["fired"]) > 1)
    assert again > 120, "most of them must have crashed more than once"
