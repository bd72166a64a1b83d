"""A disk that takes a part, is full or gives errors, at any operation of a run: exit 75, and the same bytes afterwards.

Not only writes fail here: every operation of the file layer does (fsync, rename, making and removing), and every
opening of a file and listing of a folder to read. The short form takes one case of each kind of operation on each kind
of file; the long one everything in a run of two rounds.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from policies.storage.faulty_files import FailingDisk
from tests.faults.test_crash_points import SEED, run_cases

PARTIAL = ("short", "half-ENOSPC", "half-EIO")
REFUSALS = ("once-ENOSPC", "once-EIO", "lasting-ENOSPC", "lasting-EIO")
READS = ("read-once", "read-lasting")


def every_case(operations: Sequence[str]) -> Iterator[str]:
    for number, operation in enumerate(operations, start=1):
        for mode in faults_of(operation):
            yield f"{mode}:{number}"


def faults_of(operation: str) -> tuple[str, ...]:
    """What a disk may do to an operation: a removal or a cut works on a full disk, and only writes can be partial."""
    kind = operation.split(" ")[0]
    faults = REFUSALS + PARTIAL if kind in FailingDisk.WRITING else REFUSALS
    works_when_full = kind in ("remove", "remove_tree", "cut")
    return tuple(f for f in faults if not (works_when_full and f.endswith("ENOSPC")))


def kind_of(operation: str) -> str:
    """The operation and the kind of file, e.g. `sync .parquet`; folders by name where there are few of them."""
    name, _, path = operation.partition(" ")
    file = path.rpartition("/")[2].removesuffix(".tmp")
    return f"{name} {re.sub('[.]?[0-9]+-[0-9a-f]+$', '', file).rpartition('.')[2] if '.' in file else ''}"


def sampled(operations: Sequence[str]) -> list[str]:
    """Two cases of each kind of operation on each kind of file, each with another fault in turn."""
    chosen = random.Random(SEED)
    numbers = defaultdict(list)
    for number, operation in enumerate(operations, start=1):
        numbers[kind_of(operation)].append(number)
    cases = []
    for turn, kind in enumerate(sorted(numbers)):
        faults = faults_of(kind)
        for again, number in enumerate(chosen.sample(numbers[kind], min(2, len(numbers[kind])))):
            cases.append(f"{faults[(turn + 3 * again) % len(faults)]}:{number}")
    return cases


def wrong(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases that ended otherwise than well or with 75, or came out differently, or whose fault did not happen."""
    return [
        case
        for case in found
        if case["code"]
        or case["differences"]
        or set(case["ended"]) - {0, 75}
        or not case["fired"][0]
    ]


def test_a_disk_that_fails_at_any_kind_of_operation_loses_and_changes_nothing() -> None:
    def choose(first: dict[str, Any]) -> list[str]:
        reads = random.Random(SEED).sample(range(1, first["reads"] + 1), 8)
        return sampled(first["operations"]) + [f"{READS[n % 2]}:{n}" for n in reads]

    _, found = run_cases(1, choose, timeout=280)
    assert wrong(found) == []
    assert {75, 0} == {case["ended"][0] for case in found}, "some are noticed, some are gone over"
    assert len(found) > 40


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_disk_that_fails_at_every_operation_of_two_rounds() -> None:
    first, found = run_cases(2, lambda first: list(every_case(first["operations"])), timeout=7000)
    assert wrong(found) == []
    assert len(found) > 4 * len(first["operations"]) > 1600


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_read_of_two_rounds_that_gives_an_error() -> None:
    _, found = run_cases(
        2,
        lambda first: [f"{mode}:{n}" for n in range(1, first["reads"] + 1) for mode in READS],
        timeout=7000,
    )
    assert wrong(found) == []
    assert len(found) > 2 * 400
