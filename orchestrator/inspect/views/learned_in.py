"""Tells which updates read an example: its own round's, and those of later rounds that its files joined."""

from __future__ import annotations

from orchestrator.rounds.update_view import taken_positions
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.phases import Phase, Trained
from orchestrator.runs.reader import read_sound
from orchestrator.runs.state import read_config, stream_examples


def learned_in(folder: RunFolder, index: int, example_id: str) -> list[int]:
    """Return the rounds whose update was given an example of round `index`; some may have dropped it."""
    ids = (example.id for example in stream_examples(folder.round(index)))
    position = next((place for place, found in enumerate(ids) if found == example_id), None)
    if position is None:
        return []
    seed = int(read_config(folder).get("seed") or 0)
    return [
        entry.round
        for entry in read_sound(folder).entries
        if entry.phase is Phase.TRAIN
        and _gave(entry.round, Trained.model_validate(entry.result), index, position, seed)
    ]


def _gave(later: int, trained: Trained, index: int, position: int, seed: int) -> bool:
    if trained.outcome is None:
        return False
    if later == index or index in trained.reused:
        return True
    parts = (part for part in trained.replayed if part.round == index)
    return any(position in taken_positions(seed, later, part) for part in parts)
