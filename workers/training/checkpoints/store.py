"""Checkpoints inside an update: where a long one goes on after its trainer or driver died.

Layout: `<round>/train/checkpoints/000200/{weights,optimizer}.safetensors, state.json, COMMIT.json`. A folder
is filled under a temporary name, its marker `COMMIT.json` (sha256 and size of every file, and the digest of what the
update reads) is written last, and it is renamed when all of it is durable. It counts only when the marker is there,
every file agrees with it, and the inputs are those of the update at hand. The data position and the randomness of a
step follow from the step's number and the update's seed, so neither is stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.base.component import Component
from policies.base.records import Record
from policies.examples.kinds import Example
from policies.storage.artifacts import content_digest, file_sha256
from policies.storage.checksums import read_sealed, with_seal
from policies.storage.files import (
    TEMPORARY_SUFFIX,
    make_directory,
    move,
    raise_if_disk_failed,
    remove_tree,
    sync_files,
    write_json,
)
from policies.storage.folder_names import numbered_folders
from workers.training.checkpoints.tensor_files import check_whole, refusals_told
from workers.training.job import AdapterSettings, TrainingOptions, UpdateJob

logger = logging.getLogger(__name__)

_DIGITS = 6
"""Of a step, in the name of its checkpoint."""
MARKER = "COMMIT.json"
STATE = "state.json"
_CADENCE = {"checkpoint_steps", "checkpoint_seconds", "group_timeout_seconds", "min_examples"}
"""Options that do not change what an update computes."""


class CheckpointMarker(Record):
    """Proof that a checkpoint is whole. Example: `CheckpointMarker(step=200, inputs="9f..", files={"a": (..)})`."""

    step: int
    inputs: str
    files: dict[str, tuple[str, int]]
    """sha256 and size in bytes, by name."""
    seal: str = ""
    """sha256 of the rest of the marker: a changed step would be gone on from. Empty: by an older Pawl."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    """Optimizer steps that are behind it."""
    state: dict[str, Any] = field(repr=False)
    """What `save` was given: the step log and what the engine needs besides tensors."""


def inputs_digest(
    job: UpdateJob,
    examples: Sequence[Example],
    *,
    engine: Component.Config,
    loss: Component.Config,
    options: TrainingOptions,
    adapter: AdapterSettings | None,
) -> str:
    """sha256 over everything that decides what the update computes: weights, reference, examples, settings, seed.

    Paths are left out: a run folder may be moved between two attempts.
    """
    world = 1 if job.process_group is None else job.process_group.world_size
    facts = {
        "round": job.round,
        "seed": job.seed,
        "policy": job.policy.digest,
        "reference": [
            [
                part.weight,
                next((v.digest for v in job.reference_versions if v.number == part.version), ""),
            ]
            for part in job.reference.parts
        ],
        "logprobs": job.logprobs,
        "carried": None if job.optimizer_state is None else file_sha256(Path(job.optimizer_state)),
        "examples": content_digest(examples),
        "engine": engine.model_dump(mode="json"),
        "loss": loss.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude=_CADENCE),
        "adapter": None if adapter is None else adapter.model_dump(mode="json"),
        "world_size": world,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one update."""

    def __init__(
        self,
        directory: str | None,
        inputs: str,
        *,
        options: TrainingOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = None if directory is None else Path(directory)
        self.inputs = inputs
        self._every_steps, self._every_seconds = (
            options.checkpoint_steps,
            options.checkpoint_seconds,
        )
        self._clock = clock
        self._last = clock()

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint of this very update; what is broken or of another one is passed over."""
        for path in reversed(self._folders()):
            marker, why = _read(path)
            if marker is None:
                logger.warning("%s is not used: %s", path, why)
            elif marker.inputs != self.inputs:
                logger.warning("%s is not used: it belongs to an update of other inputs", path)
            else:
                state = json.loads((path / STATE).read_text(encoding="utf-8"))
                return Checkpoint(path, marker.step, state)
        return None

    def keep_only(self, kept: Checkpoint | None) -> None:
        """Remove every other checkpoint, and what unfinished ones left."""
        if self.directory is None or not self.directory.is_dir():
            return
        for path in sorted(self.directory.iterdir()):
            if path.is_dir() and (kept is None or path != kept.path):
                remove_tree(path)

    def due(self, step: int, num_steps: int) -> bool:
        """Tell whether to save after this step; not after the last one, whose weights are the update's result."""
        if self.directory is None or step >= num_steps:
            return False
        if self._every_steps is not None and step % self._every_steps == 0:
            return True
        return self._every_seconds is not None and self._clock() - self._last >= self._every_seconds

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], None]) -> Checkpoint:
        """Let `write` put tensors into a folder, add `state`, and make it a checkpoint; older ones are removed.

        Raises:
            StorageError: the disk refuses; the checkpoint before is still there.
        """
        assert self.directory is not None
        make_directory(self.directory)
        final = self.directory / f"{step:06d}"
        temporary = self.directory / f".{final.name}.{os.getpid()}{TEMPORARY_SUFFIX}"
        remove_tree(temporary)
        make_directory(temporary)
        with refusals_told(temporary):
            write(temporary)
            for tensors in sorted(temporary.glob("*.safetensors")):
                check_whole(tensors)
        write_json(temporary / STATE, state)
        sync_files(temporary)
        files = {p.name: (file_sha256(p), p.stat().st_size) for p in sorted(temporary.iterdir())}
        marker = CheckpointMarker(step=step, inputs=self.inputs, files=files)
        write_json(temporary / MARKER, with_seal(marker.model_dump(mode="json", exclude={"seal"})))
        remove_tree(final)  # a broken one, or that of a trainer that was given up and lived on
        move(temporary, final)
        for older in self._folders():
            if int(older.name) < step:
                remove_tree(older)
        self._last = self._clock()
        return Checkpoint(final, step, state)

    def _folders(self) -> list[Path]:
        if self.directory is None or not self.directory.is_dir():
            return []
        return [path for _, path in numbered_folders(self.directory, width=_DIGITS)]


def newest_step(directory: Path) -> int:
    """Step of the newest marked checkpoint in `directory`, 0 without one; files are not read, so it is cheap to ask."""
    there = numbered_folders(directory, width=_DIGITS)
    return max((step for step, path in there if (path / MARKER).is_file()), default=0)


def damage_of(path: Path) -> str:
    """Tell why a checkpoint is not gone on from; empty for a whole one."""
    marker, why = _read(path)
    there = {p.name for p in path.iterdir()} - {MARKER}
    foreign = [] if marker is None else sorted(there - marker.files.keys())
    return why or (f"{foreign[0]} is nobody's" if foreign else "")


def _read(path: Path) -> tuple[CheckpointMarker | None, str]:
    """The marker of a whole checkpoint, or why it is not whole."""
    try:
        marker = CheckpointMarker.model_validate(read_sealed((path / MARKER).read_bytes()))
        for name, (sha256, size) in marker.files.items():
            found = path / name
            if found.stat().st_size != size or file_sha256(found) != sha256:
                return None, f"{name} changed since it was written (sha256 or size differs)"
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        raise_if_disk_failed(error, path)
        return None, f"it cannot be read: {error}"
    return marker, ""
