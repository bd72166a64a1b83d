"""Apply small changes to copies of the core, one at a time, and run the tests that are responsible for each.

A change that breaks the meaning of the code and passes its tests (a survivor) shows a test that is missing. The changes
stand in `mutants.toml`: file, old text, new text, tests. The tree itself is never edited.

    python scripts/mutants.py [--only PATTERN]... [--jobs N] [--list]

Exit code: 0 all changes were noticed, 1 some survived, 2 a change cannot be applied or its tests fail without it.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
SECONDS = 600.0
"""Longest time for the tests of one change; one that makes them hang is noticed."""
PASSED, FAILED, COLLECTION_FAILED = 0, 1, 2
"""Exit codes of pytest."""


class MutantError(Exception):
    """The list does not fit the tree; the message says what to mend."""


@dataclass(frozen=True)
class Mutant:
    """One change."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest: files, `file::test`, or `-k WORDS`."""


@dataclass(frozen=True)
class Outcome:
    """The tests' word on one change."""

    mutant: Mutant
    survived: bool
    seconds: float
    text: str


def read_list(path: Path) -> list[Mutant]:
    """The changes of a list.

    Raises:
        MutantError: a name comes twice, or a change has other keys.
    """
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", [])
    found: dict[str, Mutant] = {}
    for row in rows:
        try:
            mutant = Mutant(**{**row, "tests": tuple(row["tests"])})
        except (TypeError, KeyError) as error:
            raise MutantError(f"{path.name}: {row.get('name', '?')}: {error}") from error
        if mutant.name in found:
            raise MutantError(f"{path.name}: {mutant.name} stands there twice")
        found[mutant.name] = mutant
    return list(found.values())


def check_fits(mutants: Iterable[Mutant], root: Path) -> None:
    """Refuse changes whose old text is not there exactly once, or whose tests are not there.

    Raises:
        MutantError: names all of them.
    """
    problems = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            problems.append(
                f"{mutant.name}: its old text stands {count} times in {mutant.file}: {mutant.old!r}"
            )
        if mutant.old == mutant.new:
            problems.append(f"{mutant.name}: it changes nothing")
        for test in _files(mutant.tests):
            if not (root / test).is_file():
                problems.append(f"{mutant.name}: no such tests: {test}")
    if problems:
        raise MutantError("\n".join([*problems, f"Fix: correct these entries of {LIST.name}"]))


def _files(tests: Sequence[str]) -> list[str]:
    return [test.partition("::")[0] for test in tests if test.partition("::")[0].endswith(".py")]


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git tracks, and what it would, as it stands now."""
    listed = subprocess.run(  # nosec B607 # the git of the PATH, as everywhere
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        source = root / name
        if source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """Exit code of pytest (None: it took too long) and its last lines; the code under test is the tree's."""
    # No byte code: a change and its undoing within one second could otherwise look like the same file.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"took longer than {SECONDS:g} s"
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, (failed or lines or ["no output"])[-1]


def try_mutant(tree: Path, mutant: Mutant) -> Outcome:
    """Apply the change in `tree`, run its tests, and put the file back."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    started = time.monotonic()
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, said = run_tests(tree, mutant.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    if code not in (None, PASSED, FAILED, COLLECTION_FAILED):
        raise MutantError(f"{mutant.name}: pytest ended with {code}: {said}")
    return Outcome(mutant, code == PASSED, time.monotonic() - started, said)


def check_tests_pass(tree: Path, mutants: Iterable[Mutant]) -> None:
    """Run all tests once without any change: what fails anyway notices nothing.

    Raises:
        MutantError: names the tests that fail.
    """
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        code, said = run_tests(tree, tests)
        if code != PASSED:
            raise MutantError(f"{' '.join(tests)} fails without any change: {said}")


def run_all(mutants: Sequence[Mutant], root: Path, jobs: int) -> list[Outcome]:
    """Try every change, each job in a copy of its own; prints each outcome as it comes.

    Raises:
        MutantError: a change cannot be tried.
    """
    said = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="pawl-mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            tree = Path(folder) / str(number)
            copy_tree(root, tree)
            trees.put(tree)

        def work(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                outcome = try_mutant(tree, mutant)
            finally:
                trees.put(tree)
            verdict = "SURVIVED" if outcome.survived else "noticed"
            with said:
                print(f"{verdict:8} {mutant.name} ({outcome.seconds:.0f} s) {outcome.text}", flush=True)  # fmt: skip
            return outcome

        check_tests_pass(Path(folder) / "0", mutants)
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, mutants))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--list", action="store_true", help="check that all fit, and name them")
    options = parser.parse_args(arguments)
    try:
        mutants = read_list(LIST)
        check_fits(mutants, ROOT)
        if options.only:
            mutants = [m for m in mutants if any(fnmatch.fnmatch(m.name, p) for p in options.only)]
            if not mutants:
                raise MutantError(f"no change is called {' or '.join(options.only)}; see --list")
        if options.list:
            for mutant in mutants:
                print(f"{mutant.name:32} {mutant.file}  {' '.join(mutant.tests)}")
            return 0
        outcomes = run_all(mutants, ROOT, max(1, options.jobs))
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2
    survivors = [outcome.mutant.name for outcome in outcomes if outcome.survived]
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} changes were noticed")
    if survivors:
        print(f"survived: {', '.join(survivors)}. Fix: write the test that notices each")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
