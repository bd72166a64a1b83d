"""Removes what a driver that died left lying: uncommitted attempts and temporary files. Nothing of it counts."""

from __future__ import annotations

from pathlib import Path

from orchestrator.runs.folder import RoundFolder, RunFolder
from policies.storage import files
from policies.storage.folder_names import numbered_folders


def remove_attempts(folder: RoundFolder) -> None:
    """Remove what workers wrote for a round and nobody committed, a late worker's files included."""
    files.remove_tree(folder.attempts)
    for measurement in folder.measurements():
        files.remove_tree(measurement.attempts)


def remove_leftovers(folder: RunFolder, next_round: int) -> None:
    """Tidy up after an earlier driver. Call it when the run has been claimed, before anything is read.

    Attempts are looked for in every round (a late worker may have written into a finished one), temporaries where a
    driver may have died: the rounds around `next_round`, the folders beside them and what was set aside.
    """
    for index in folder.rounds():
        remove_attempts(folder.round(index))
    for top in (folder.path, folder.policies, folder.tracking):
        if top.is_dir():
            files.remove_temporaries(top)
    around = range(max(0, next_round - 1), next_round + 2)  # the next one may be sampled ahead
    recent = [folder.round(i).path for i in around]
    recent += [path for _, path in numbered_folders(folder.policies)]
    for path in [*recent, folder.quarantine]:  # it has the run's own folders inside
        _remove_temporaries_below(path)


def _remove_temporaries_below(path: Path) -> None:
    if not path.is_dir():
        return
    files.remove_temporaries(path)
    for inner in sorted(path.iterdir()):
        if inner.is_dir() and not inner.is_symlink():
            _remove_temporaries_below(inner)
