"""A driver for tests of who is alive: claims a run, says so, and beats until its standard input ends.

Usage: claiming_driver.py RUN_DIR [BEAT_SECONDS]
Prints `claimed EPOCH PID`, or `refused MESSAGE` and ends with 75. Each line that it is sent lets it add a line to the
journal; it answers `added` or `refused MESSAGE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.lease import claim
from orchestrator.runs.phases import Phase
from policies.base.errors import LeaseError
from policies.base.records import RoundResult, RoundStatus


def say(text: str) -> None:
    """Answer one line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    folder, beat = RunFolder(Path(sys.argv[1])), float(sys.argv[2])
    try:
        with claim(folder, beat_seconds=beat) as lease:
            journal = Journal(folder.journal, guard=lease.fence)
            say(f"claimed {lease.claim.epoch} {lease.claim.pid}")
            for _ in sys.stdin:
                index = journal.next_round()
                result = RoundResult(
                    round=index, status=RoundStatus.KEPT, before=0, after=0, reference="none"
                )
                journal.append(index, Phase.ACCEPT, result)
                say("added")
    except LeaseError as error:
        say(f"refused {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
