"""What a run decided is read by checked readers alone: nobody parses its journal, identity or config on the side."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
READERS = frozenset(
    (
        "orchestrator/runs/stored_config.py",
        "orchestrator/runs/journal.py",
        "orchestrator/runs/journal_reading.py",
        "orchestrator/runs/folder.py",
        "orchestrator/runs/identity.py",
        "orchestrator/runs/reader.py",
        "orchestrator/inspect/audit/identity.py",
        "orchestrator/inspect/audit/run.py",
        "orchestrator/storage/mirror.py",  # sends its bytes, and reads nothing in them
    )
)
"""Modules that compare before they return, and the audit, which tells what does not compare."""
_RAW = re.compile(
    r"\b(identity|config|journal|removed)\.(read_(text|bytes)|open)\(|\bmanifest\.json\b.*read_"
)


def test_nobody_else_parses_what_a_run_decided() -> None:
    found = []
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in READERS and _RAW.search(path.read_text(encoding="utf-8")):
            found.append(name)
    assert found == [], "read it through orchestrator/runs/reader.py"
    raw = [n for n in READERS if _RAW.search((ROOT / n).read_text(encoding="utf-8"))]
    assert raw, "the pattern still finds the readers themselves"
