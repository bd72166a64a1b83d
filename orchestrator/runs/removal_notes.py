"""Notes on what a run folder lacks for a reason: written before anything goes missing, read by whoever misses it.

Retention removes what is old; a run that was fetched from a bucket leaves there what its next round does not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from orchestrator.runs.folder import RunFolder
from policies.base.errors import CorruptStateError, explain
from policies.base.records import Record
from policies.storage import files
from policies.storage.checksums import read_sealed, with_seal
from policies.storage.folder_names import numbered

N = TypeVar("N", bound=Record)

FETCHED = "fetched.json"
"""Says what was left in the bucket; stays on the machine that fetched."""
Kind = Literal["policy", "round", "optimizer"]


class Removed(Record):
    """A note on something that was removed. Example: `Removed(kind="policy", number=3, was={"digest": "9f.."})`."""

    kind: Kind
    number: int
    after_round: int
    """The last round that had finished."""
    was: dict[str, str]
    """What was known of it: digest and parent of a policy."""
    seal: str = ""
    """sha256 of the rest of the note; empty: by an older Pawl."""

    def sentence(self) -> str:
        """For people: what is gone, since when, and which setting did it."""
        what = {
            "policy": f"policy version {self.number} was",
            "round": f"the samples of round {self.number} were",
            "optimizer": f"the optimizer state of round {self.number} was",
        }[self.kind]
        setting = "trajectories" if self.kind == "round" else "policies"
        return f"{what} removed after round {self.after_round} (retention.{setting})"


def note_path(folder: RunFolder, kind: Kind, number: int) -> Path:
    """Tell where the note on an item lies."""
    return folder.removed / f"{kind}-{number:04d}.json"


def removed(folder: RunFolder, kind: Kind) -> dict[int, Removed]:
    """The notes on what was removed of a run, by number."""
    found = {}
    for _, path in numbered(folder.removed, prefix=f"{kind}-", suffix=".json"):
        note = _read(path, Removed)
        found[note.number] = note
    return found


def why_gone(folder: RunFolder, kind: Kind, number: int) -> str | None:
    """A sentence about an item that retention removed; None when it did not."""
    path = note_path(folder, kind, number)
    return _read(path, Removed).sentence() if path.exists() else None


def write_note(path: Path, note: Record) -> None:
    """Write a note under its seal."""
    files.write_json(path, with_seal(note.model_dump(mode="json", exclude={"seal"})))


def _read(path: Path, kind: type[N]) -> N:
    try:
        return kind.model_validate(read_sealed(path.read_bytes()))
    except (OSError, ValueError) as error:
        files.raise_if_disk_failed(error, path)
        raise CorruptStateError(
            explain(
                f"a note on what the run folder lacks cannot be read: {error}",
                value=str(path),
                where="whoever changed the file",
                fix="restore it from a copy of the run",
            )
        ) from error


class LeftInBucket(Record):
    """Files that a fetch did not bring along.

    Example: `LeftInBucket(address="s3://b/runs/a", names=("rounds/..",))`.
    """

    address: str
    run_id: str = ""
    """Whose copy it is; empty in notes of an older Pawl."""
    names: tuple[str, ...]
    """Files, relative to the run folder."""
    seal: str = ""
    """sha256 of the rest of the note; empty: by an older Pawl."""


def left_in_bucket(folder: RunFolder) -> LeftInBucket | None:
    """Return what was not fetched of the run; None for a run that never left its machine."""
    path = folder.path / FETCHED
    return _read(path, LeftInBucket) if path.exists() else None
