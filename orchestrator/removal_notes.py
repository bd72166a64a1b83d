"""Notes on what a run folder lacks for a reason: written before anything goes missing, read by whoever misses it.

Retention removes what is old; a run that was fetched from a bucket leaves there what its next round does not need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from orchestrator.run_folder import RunFolder
from policies.folder_names import numbered
from policies.records import Record

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
    """Where the note on an item lies."""
    return folder.removed / f"{kind}-{number:04d}.json"


def removed(folder: RunFolder, kind: Kind) -> dict[int, Removed]:
    """The notes on what was removed of a run, by number."""
    found = {}
    for _, path in numbered(folder.removed, prefix=f"{kind}-", suffix=".json"):
        note = Removed.model_validate(json.loads(path.read_text(encoding="utf-8")))
        found[note.number] = note
    return found


def why_gone(folder: RunFolder, kind: Kind, number: int) -> str | None:
    """A sentence about an item that retention removed; None when it did not."""
    try:
        text = note_path(folder, kind, number).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Removed.model_validate_json(text).sentence()


class LeftInBucket(Record):
    """What a fetch did not bring along. Example: `LeftInBucket(address="s3://b/runs/a", names=("rounds/..",))`."""

    address: str
    run_id: str = ""
    """Whose copy it is; empty in notes of an older Pawl."""
    names: tuple[str, ...]
    """Files, relative to the run folder."""


def left_in_bucket(folder: RunFolder) -> LeftInBucket | None:
    """What was not fetched of the run; None for a run that never left its machine."""
    try:
        text = (folder.path / FETCHED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return LeftInBucket.model_validate_json(text)
