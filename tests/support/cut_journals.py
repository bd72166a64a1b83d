"""Taking a run back to an earlier line of its journal, as if its driver had died there."""

from __future__ import annotations

from orchestrator.runs.folder import RunFolder


def cut_journal(folder: RunFolder, num_lines: int) -> None:
    """Keep the first lines. What the epochs say of how far the journal went goes, too: they would call it a loss."""
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    folder.journal.write_bytes(b"".join(lines[:num_lines]))
    forget_heads(folder)


def forget_heads(folder: RunFolder) -> None:
    """Leave nothing that says how far the journal went, as in a run that an older Pawl began."""
    for path in (*folder.epochs.glob("*.head"), *folder.epochs.glob("*.beat")):
        path.unlink()
