"""Room on the disk: what the rest of a run will write, by what it has written so far, against what is free."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrator.config.run_config import RunConfig
from orchestrator.plan.sizes import checkpoint_bytes, memory_text
from orchestrator.rounds.context import Run
from orchestrator.runs.events import EventLog
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.journal import Journal
from orchestrator.runs.phases import Phase, Trained
from policies.base.errors import StorageError, explain
from policies.storage.folder_names import numbered_folders
from policies.storage.policy_store import PolicyStore

_GB = 10**9
_RECENT = 3


def check_room(run: Run) -> None:
    """Refuse to begin a round that will not fit.

    Raises:
        StorageError: less is free than the round will write, besides `limits.min_free_gb`.
    """
    index = run.journal.next_round()
    free = shutil.disk_usage(run.folder.path).free
    spare = round(run.config.limits.min_free_gb * _GB)
    checkpoints = _checkpoints(run, index)
    needed = bytes_of_a_round(run.folder, index) + checkpoints
    if free < needed + spare:
        some = f" (of which checkpoints inside its update {memory_text(checkpoints)})"
        raise StorageError(
            explain(
                f"round {index} will write about {memory_text(needed)}{some if checkpoints else ''} and "
                f"{memory_text(spare)} are to stay free, but {run.folder.path} has {memory_text(free)} left",
                value=memory_text(free),
                where="the place of the run folder, and limits.min_free_gb",
                fix="make room, then `pawl resume`; a new run with `retention` keeps less",
            )
        )


def warn_about_room(run: Run) -> None:
    """Say beforehand that the rest of the run will not fit, as far as that can be known."""
    index = run.journal.next_round()
    rest = bytes_of_a_round(run.folder, index) * _rounds_that_stay(run, index)
    rest += _checkpoints(run, index)
    free = shutil.disk_usage(run.folder.path).free
    if free < rest + round(run.config.limits.min_free_gb * _GB):
        run.events.warn(
            f"the rest of the run will write about {memory_text(rest)}, and {memory_text(free)} are free; it stops "
            "cleanly when they are used up. Fix: make room meanwhile",
            round_index=index,
        )


def bytes_of_a_round(folder: RunFolder, index: int) -> int:
    """About what a round leaves on the disk: the weights that serve, and the samples of the rounds before.

    Without a round before only the weights are counted; `pawl plan` estimates the samples.
    """
    samples = max(
        (folder_bytes(folder.round(i).path) for i in range(max(0, index - _RECENT), index)),
        default=0,
    )
    if index == 0:
        return samples
    return samples + weights_bytes(folder)


def _checkpoints(run: Run, index: int) -> int:
    return bytes_of_checkpoints(run.config, run.folder, run.journal, run.events, index)


def bytes_of_checkpoints(
    config: RunConfig, folder: RunFolder, journal: Journal, events: EventLog, index: int
) -> int:
    """Most bytes that checkpoints inside the round's update will take, by the steps and seconds of those before.

    Without an update before nothing is known, and nothing counted; `pawl plan` names the upper bound.
    """
    options = config.stage_of(index).training
    number = 0
    for before in range(max(1, index - _RECENT), index):
        trained = journal.find(before, Phase.TRAIN, Trained)
        if trained is None or trained.outcome is None:
            continue
        if options.checkpoint_steps is not None:
            number = max(number, (trained.outcome.num_steps - 1) // options.checkpoint_steps)
        if options.checkpoint_seconds is not None:
            seconds = events.phase_seconds(before).get(Phase.TRAIN, 0.0)
            number = max(number, int(seconds // options.checkpoint_seconds))
    if not number:
        return 0
    # Two at a time: the one before is removed when the new one is whole. One may be there already, after a resume.
    most = min(2, number) * checkpoint_bytes(config, weights_bytes(folder))
    return max(0, most - folder_bytes(folder.round(index).checkpoints))


def weights_bytes(folder: RunFolder) -> int:
    """Size of the newest published policy, or of the model that the run started from."""
    published = [number for number, _ in numbered_folders(folder.policies)]
    if not published:
        return 0
    newest = published[-1]
    path = folder.policies / f"{newest:04d}"
    if newest == 0:
        path = Path(PolicyStore(folder.policies).get(0).path)
    return sum(p.stat().st_size for p in path.glob("*.safetensors"))


def folder_bytes(path: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for inner in path.rglob("*"):
        try:
            total += inner.stat().st_size if inner.is_file() else 0
        except OSError:  # it was removed or renamed while we looked
            continue
    return total


def _rounds_that_stay(run: Run, index: int) -> int:
    """Rounds to come whose files will lie on the disk together, as retention has it."""
    left = run.config.rounds - index + 1
    kept = [run.config.retention.policies, run.config.retention.trajectories]
    if "all" in kept:
        return left
    return min(left, max(n if isinstance(n, int) else 1 for n in kept))
