"""One update on the training workers, again from the last checkpoint when a worker dies.

Every try writes under a folder of its own in the round's `attempts/`, so a trainer that was given up and lives on
disturbs none. The driver moves what a whole try left to its place in the round. Checkpoints are shared by all tries.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.flow.waiting import wait_for_any, wait_for_result
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.transfers import update_files
from orchestrator.rounds.update_files import record_update
from orchestrator.runs.events import EventKind
from policies.base.errors import (
    DivergenceError,
    PawlError,
    TrainingError,
    WorkerLostError,
    WorkerMemoryError,
    explain,
)
from policies.storage.files import make_directory, move, remove_tree, sync_files
from workers.cluster.seam import Call
from workers.training.checkpoints.store import newest_step
from workers.training.distributed.process_group import LOOPBACK
from workers.training.engine import ProcessGroup, UpdateJob, UpdateOutcome


def train(
    scope: RoundScope, job: UpdateJob, earlier: Sequence[Path], expected_steps: int
) -> UpdateOutcome:
    """Make the update; its candidate, log and optimizer state lie where `job` says afterwards.

    Args:
        scope: the round; its own examples come first.
        job: the update.
        earlier: example files of earlier rounds.
        expected_steps: optimizer steps, for the progress bar.

    Raises:
        DivergenceError: a number is not finite; the log of the steps before is in place.
        TrainingError: the workers died `cluster.max_attempts` times without getting to another checkpoint.
        WorkerMemoryError: likewise, for want of memory.
    """
    tries = _Tries(scope, job)
    while True:
        attempt = tries.begin()
        report = _progress(scope, Path(attempt.log_path), tries.newest, expected_steps)
        try:
            outcome = _together(scope, attempt, earlier, report)
        except WorkerLostError as error:
            report()
            tries.died(attempt, error)
            continue
        except DivergenceError:
            _commit(scope, attempt, job, only_log=True)
            raise
        report()
        _commit(scope, attempt, job)
        return outcome


class _Tries:
    """Counts the deaths since the newest checkpoint."""

    def __init__(self, scope: RoundScope, job: UpdateJob) -> None:
        self.scope, self.job = scope, job
        self.number = 0
        self.deaths: list[int] = []
        """The step in which each try died, since the newest checkpoint."""
        self.newest = self._newest()

    def begin(self) -> UpdateJob:
        """The job with the paths of a fresh try."""
        self.number += 1
        name = f"train-e{self.scope.run.fence.epoch:06d}-{self.number:04d}"
        folder = self.scope.folder.attempts / name
        remove_tree(folder)
        make_directory(folder)
        paths = {
            name: None if path is None else str(folder / Path(path).name)
            for name, path in _outputs(self.job).items()
        }
        return self.job.model_copy(update=paths)

    def died(self, attempt: UpdateJob, error: WorkerLostError) -> None:
        """Note a death.

        Raises:
            TrainingError: it was one too many.
            WorkerMemoryError: likewise, and there was no memory: on a machine with some, or later, it may go on.
        """
        run, newest = self.scope.run, self._newest()
        if newest > self.newest:
            self.newest, self.deaths = newest, []
        self.deaths.append(_logged_steps(Path(attempt.log_path)) + 1)
        remove_tree(Path(attempt.log_path).parent)
        if len(self.deaths) >= run.config.cluster.max_attempts:
            steps = ", ".join(map(str, sorted(set(self.deaths))))
            kind = WorkerMemoryError if isinstance(error, WorkerMemoryError) else TrainingError
            raise kind(
                explain(
                    f"the training worker died {len(self.deaths)} times since the checkpoint of step {newest}, while "
                    f"making step {steps}; the last time: {error}",
                    value=len(self.deaths),
                    where="cluster.max_attempts",
                    fix="look at the worker's log for memory (lower training.micro_batch_size, or max_length), or set "
                    "training.checkpoint_steps when the machine is taken away often; then `pawl resume`",
                )
            )
        run.events.warn(
            f"the update died while making step {self.deaths[-1]} and goes on after step {newest}: {error}",
            round_index=self.scope.index,
        )

    def _newest(self) -> int:
        return newest_step(self.scope.folder.checkpoints)


def _outputs(job: UpdateJob) -> dict[str, str | None]:
    """Return what an update writes besides checkpoints, by the job's field."""
    return {
        "output_dir": job.output_dir,
        "log_path": job.log_path,
        "optimizer_output": job.optimizer_output,
    }


def _commit(
    scope: RoundScope, attempt: UpdateJob, job: UpdateJob, *, only_log: bool = False
) -> None:
    """Move what the try left to its place in the round, and remove the rest of it."""
    folder = Path(attempt.log_path).parent
    with scope.run.fence.holding():
        sync_files(folder)
        finals = _outputs(job)
        for name, made in _outputs(attempt).items():
            final = finals[name]
            if made is None or final is None or (only_log and name != "log_path"):
                continue
            if Path(final).is_dir():  # from before a crash between here and the journal
                remove_tree(Path(final))
            if Path(made).exists():
                move(Path(made), Path(final))
        record_update(scope.folder)
        remove_tree(folder)


def _together(
    scope: RoundScope, job: UpdateJob, earlier: Sequence[Path], report: Callable[[], None]
) -> UpdateOutcome:
    """Run one try on all training workers; when one dies, the others are ended too."""
    run, group = scope.run, scope.run.groups.train
    examples = [str(path) for path in (*scope.folder.shards("examples"), *earlier)]
    calls: list[Call] = []
    for worker, place in enumerate(_places(scope)):
        own = job.model_copy(update={"process_group": place})
        label, files = f"round {scope.index}", update_files(own, examples, scope.folder)
        calls.append(group.submit("update", own, examples, worker=worker, label=label, files=files))

    def look_up() -> None:
        run.stop.check()
        report()

    timeout = run.config.cluster.training_timeout_seconds
    waiting, answers, errors = list(calls), {}, []
    while waiting:
        setting = "cluster.training_timeout_seconds"
        for call in wait_for_any(run.cluster, waiting, timeout, setting=setting, look_up=look_up):
            waiting.remove(call)
            try:
                answers[id(call)] = run.cluster.result(call, 60.0)
            except PawlError as error:
                errors.append(error)
        if any(isinstance(error, WorkerLostError) for error in errors):
            break
    if errors:
        _end(scope, waiting, errors)
        raise _cause(errors)
    first: UpdateOutcome = answers[id(calls[0])]
    return first


def _end(scope: RoundScope, waiting: Sequence[Call], errors: Sequence[PawlError]) -> None:
    """End the workers that still wait for one that died, so that the next try finds them free."""
    cluster = scope.run.cluster
    for call in waiting:
        cluster.abandon(call, f"another worker of the update failed: {errors[0]}")
        with contextlib.suppress(PawlError):  # it was ended on purpose: that it is lost is no news
            cluster.result(call, 60.0)


def _cause(errors: Sequence[PawlError]) -> PawlError:
    """The error to report: a worker that is left alone fails too, but is not why."""
    for kind in (WorkerLostError, DivergenceError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return errors[0]


def _places(scope: RoundScope) -> list[ProcessGroup | None]:
    """Each training worker's place among them; rank 0 listens for the others from now on."""
    run, group = scope.run, scope.run.groups.train
    if group.size == 1:
        return [None]

    def ask(method: str, *args: str, worker: int) -> object:
        call = group.submit(method, *args, worker=worker)
        timeout = run.config.cluster.start_timeout_seconds
        setting = "cluster.start_timeout_seconds"
        return wait_for_result(run.cluster, call, timeout, stop=run.stop, setting=setting)

    addresses = [str(ask("address", worker=worker)) for worker in range(group.size)]
    on_machine = Counter(addresses)
    address = LOOPBACK if len(on_machine) == 1 else addresses[0]
    port = int(str(ask("open_rendezvous", address, worker=0)))
    return [
        ProcessGroup(
            address=address,
            port=port,
            rank=rank,
            world_size=group.size,
            local_world_size=on_machine[addresses[rank]],
        )
        for rank in range(group.size)
    ]


def _logged_steps(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:  # it died before its first step
        return 0


def _progress(
    scope: RoundScope, log_path: Path, seen: int, expected_steps: int
) -> Callable[[], None]:
    """Report each optimizer step after the `seen` first as an event, from the log that the trainer writes."""

    def look() -> None:
        nonlocal seen
        try:
            lines = log_path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines[seen:]:
            try:
                row = json.loads(line)
            except ValueError:  # the trainer is writing this line
                return
            seen += 1
            scope.run.events.emit(
                EventKind.TRAINING_STEP,
                round_index=scope.index,
                phase="train",
                step=row.get("step", seen),
                steps=expected_steps,
                loss=row.get("train/loss"),
            )

    return look
