"""Costs of the sandbox, beside a bare subprocess in the same run; and, with --attacks, what it holds.

python -m benchmarks.sandbox               cold and warm latency, rate, as ratios
python -m benchmarks.sandbox --attacks     the attack battery: one row per attack, one column per backend
python -m benchmarks.sandbox --attacks --mutants    the same with each layer taken off
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.attacks.host_programs import ATTACKS
from tests.attacks.victims import available, open_victims
from workers.sandbox.interpreter import find_interpreter
from workers.sandbox.keeper import keeper
from workers.sandbox.policy import Layers
from workers.sandbox.sandbox import Sandbox
from workers.sandbox.settings import SandboxBackend, SandboxSettings, SandboxStatus

PROGRAM = "print(1)"
LAYERS = {
    "": Layers(),
    " without seccomp": Layers(seccomp=False),
    " without Landlock": Layers(landlock=False),
    " without limits": Layers(limits=False),
    " without watch": Layers(watch=False),
    " with none of them": Layers(landlock=False, seccomp=False, limits=False, watch=False),
}


def run_attacks(backend: SandboxBackend, layers: Layers, every: int) -> dict[str, list[str]]:
    """Return what each attack achieved, or every n-th one; empty where the sandbox held."""
    attacks = [a for group in ATTACKS.values() for a in group][::every]
    with open_victims(backend, layers) as victims:
        victims.wait_for(attacks)
        return {a.name: victims.attack(a)[1] for a in attacks}


def attack_report(
    backends: list[SandboxBackend], *, mutants: bool, as_json: bool, every: int = 1
) -> int:
    """Print the table; returns 1 when a backend with all its layers did not hold."""
    columns = {
        f"{backend}{name}": run_attacks(backend, layers, every)
        for backend in backends
        for name, layers in LAYERS.items()
        if mutants or not name
    }
    summary = {
        column: {"attacks": len(found), "reached": {k: v for k, v in found.items() if v}}
        for column, found in columns.items()
    }
    if as_json:
        print(json.dumps(summary))
    else:
        _print_table(columns)
    return int(any(summary[backend]["reached"] for backend in backends))


def _print_table(columns: dict[str, dict[str, list[str]]]) -> None:
    print("X: the attack reached its aim; .: held\n")
    print(f"| attack | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for group, attacks in ATTACKS.items():
        for attack in attacks:
            cells = ["X" if found.get(attack.name) else "." for found in columns.values()]
            print(f"| {group}: {attack.name} | {' | '.join(cells)} |")
    totals = [f"{sum(map(bool, f.values()))} of {len(f)}" for f in columns.values()]
    print(f"| **reached** | {' | '.join(totals)} |")


def milliseconds(work: Callable[[], Any], repeats: int, pause: float = 0.0) -> list[float]:
    """Sorted times of single calls."""
    times = []
    for _ in range(repeats):
        time.sleep(pause)
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return sorted(times)


def rate(work: Callable[[], Any], repeats: int, threads: int) -> tuple[float, float]:
    """Calls per second from so many threads, and milliseconds of processor time that each took."""
    with ThreadPoolExecutor(threads) as pool:
        started, used = time.perf_counter(), processor_seconds()
        list(pool.map(lambda _: work(), range(repeats)))
        seconds = time.perf_counter() - started
        return repeats / seconds, (processor_seconds() - used) * 1000 / repeats


def processor_seconds() -> float:
    """Processor time so far of this process, its keeper, and all children of both that have ended."""
    ticks = 0
    for pid in (os.getpid(), keeper().pid):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def bare() -> None:
    """The yardstick: a Python process that nothing contains."""
    command = [find_interpreter(False).executable, "-I", "-S", "-c", PROGRAM]
    subprocess.run(command, capture_output=True, check=True)


def cost_report(backends: list[SandboxBackend], repeats: int) -> int:
    """Print medians, 90th percentiles and ratios to the bare process."""
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}\n")
    print("| what | best ms | median ms | p90 ms | median, times bare |\n|---|---|---|---|---|")
    yardstick = milliseconds(bare, repeats)
    _row("bare process", yardstick, yardstick)
    rates = {"bare process": rate(bare, 4 * repeats, cores)}
    for backend in backends:
        settings = SandboxSettings(backend=backend, num_warm=cores + 1)
        with Sandbox(settings.model_copy(update={"num_warm": 0})) as cold:
            cold.prepare()
            _row(f"{backend}, cold", milliseconds(lambda: _ok(cold), repeats), yardstick)
        with Sandbox(settings) as warm:
            warm.prepare()
            run = milliseconds(lambda: _ok(warm), repeats, pause=0.2)
            _row(f"{backend}, warm program", run, yardstick)
            called = milliseconds(lambda: _called(warm), repeats, pause=0.2)
            _row(f"{backend}, warm call of a function", called, yardstick)
            session = warm.open_session()
            session.run("x = 1")
            cells = milliseconds(lambda: session.run("x"), repeats)  # noqa: B023
            _row(f"{backend}, cell of a session", cells, yardstick)
            session.close()
            rates[backend] = rate(lambda: _ok(warm), 4 * repeats, cores)
    print(f"\n| executions, {cores} threads | per second | share of bare | processor ms each |")
    print("|---|---|---|---|")
    for name, (value, processor) in rates.items():
        share = value / rates["bare process"][0]
        print(f"| {name} | {value:.0f} | {share:.2f} | {processor:.0f} |")
    return 0


def _ok(sandbox: Sandbox) -> None:
    result = sandbox.run(PROGRAM)
    assert result.status is SandboxStatus.OK, result


def _called(sandbox: Sandbox) -> None:
    (result,) = sandbox.call("def f(x): return x", "f", [[1]])
    assert result.value == 1, result


def _row(name: str, times: list[float], yardstick: list[float]) -> None:
    median, p90 = statistics.median(times), times[int(0.9 * len(times))]
    ratio = median / statistics.median(yardstick)
    print(f"| {name} | {times[0]:.1f} | {median:.1f} | {p90:.1f} | {ratio:.1f} |")


def main() -> int:
    """Parse the command line and do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="only every n-th attack")
    parser.add_argument("--backends", nargs="+", default=[], help="bwrap, landlock, auto")
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    backends: list[SandboxBackend] = given.backends or available()
    if given.backends == ["auto"]:
        with Sandbox() as sandbox:
            backends = [sandbox.prepare()]
    if given.attacks:
        return attack_report(backends, mutants=given.mutants, as_json=given.json, every=given.every)
    return cost_report(backends, given.repeats)


if __name__ == "__main__":
    sys.exit(main())
