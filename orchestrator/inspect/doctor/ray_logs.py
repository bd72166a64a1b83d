"""The last lines that a worker wrote, found in Ray's session folders of this machine by its process id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from policies.base.plain_text import one_line
from policies.base.redaction import redact_secrets
from workers.cluster.private_folder import places_of_ray

_TAIL_BYTES = 4000
_NUM_LINES = 4


def tails_of(pids: Iterable[int]) -> list[str]:
    """For each process whose log is found, its path and its last lines on one line."""
    return [text for pid in pids for text in _tail(pid)]


def _tail(pid: int) -> list[str]:
    found = []
    for path in _logs(pid):
        try:
            with path.open("rb") as handle:
                handle.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                text = handle.read().decode("utf-8", "replace")
        except OSError:  # it was rotated away
            continue
        lines = [line for line in text.splitlines() if line.strip()][-_NUM_LINES:]
        if lines:
            found.append(f"{path}: {one_line(redact_secrets(' | '.join(lines)), 500)}")
    return found


def _logs(pid: int) -> list[Path]:
    pattern = f"session_2*/logs/worker-*-{pid}.*"
    found = [path for place in places_of_ray() for path in place.glob(pattern)]
    return sorted((p for p in found if p.suffix in (".err", ".out")), key=lambda p: p.suffix)[:2]
