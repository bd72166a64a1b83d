"""Measures how often a policy calls again after a tool call that failed, and after one that worked.

    python benchmarks/called_again.py RUN_DIR [RUN_DIR ...]

Counts over the held-out trajectories of each round, `again/calls`, failed calls first. Pass@1 alone does not tell a
policy that recovers from failures from one that calls again whatever came back.
"""

from __future__ import annotations

import sys
from pathlib import Path

from policies.base.records import ToolCallStatus, Trajectory
from policies.storage.artifacts import read_records


def main() -> None:
    """Print a row per run."""
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    for folder in folders:
        rounds = sorted(folder.glob("rounds/*/evaluate"))
        cells = [" ".join(f"{again}/{calls}" for again, calls in counts(path)) for path in rounds]
        print(f"| {folder.name} | {' | '.join(cells)} |")


def counts(evaluation: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(called again, calls) after failed calls and after the others; calls that end their trajectory do not count."""
    again, calls = [0, 0], [0, 0]
    for path in sorted(evaluation.glob("trajectories/*.parquet")):
        for trajectory in read_records(path, Trajectory):
            turns = trajectory.turns
            for place, turn in enumerate(turns[:-1]):
                if turn.calls:
                    worked = turn.calls[-1].status is ToolCallStatus.OK
                    calls[worked] += 1
                    again[worked] += place + 2 < len(turns) and bool(turns[place + 2].calls)
    return (again[0], calls[0]), (again[1], calls[1])


if __name__ == "__main__":
    main()
