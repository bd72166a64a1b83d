"""One update as a task: all training workers at once, again from the last checkpoint when one dies.

Every try writes under a folder of its own in the round's `attempts/`, so a trainer that was given up and lives on
disturbs none. The driver moves what a whole try left to its place in the round. Checkpoints are shared by all tries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.flow.fingerprint import input_digests
from orchestrator.flow.task import (
    Ask,
    Asks,
    Attempt,
    Exchange,
    Guard,
    RecordFile,
    Summary,
    Task,
    rendezvous,
)
from orchestrator.flow.waiting import Patience
from orchestrator.rounds.context import RoundScope
from orchestrator.rounds.transfers import policy_files
from orchestrator.rounds.update_files import UpdateFiles, UpdateFolder, record_update
from orchestrator.runs.events import EventKind
from orchestrator.runs.folder import RoundFolder
from policies.base.errors import (
    DivergenceError,
    PawlError,
    TrainingError,
    WorkerLostError,
    WorkerMemoryError,
    explain,
)
from policies.storage.artifacts import file_sha256
from policies.storage.files import make_directory, move, remove_file, remove_tree, sync_files
from policies.storage.guarding import committing
from workers.cluster.seam import Files
from workers.training.checkpoints.store import newest_step
from workers.training.distributed.process_group import LOOPBACK
from workers.training.engine import ProcessGroup, UpdateJob, UpdateOutcome

DIVERGED = "diverged"
"""In the summary of an update that was abandoned: the reason."""
OUTCOME = "outcome"
"""In the summary of an update: its `UpdateOutcome` without clocks, as text. A marker would lose the order of the
metrics, and the journal has it."""


@dataclass(kw_only=True, eq=False)
class UpdateTask(Task):
    """An update. Its summary has its `OUTCOME`, or says why it was abandoned (`DIVERGED`)."""

    job: UpdateJob
    """With the places where its outputs lie afterwards."""
    folder: RoundFolder
    patience: Patience
    meeting: Patience
    """For the workers to tell each other where they are."""
    on_step: Callable[[Mapping[str, Any]], None] = lambda row: None
    """Told each new line of the step log."""
    timings: dict[str, float] = field(default_factory=dict)
    """Clocks of the last try."""
    _seen: int = 0
    """Lines of the log that were told."""
    _died_at: list[int] = field(default_factory=list)
    """The step in which each try died, since the newest checkpoint."""

    def exchange(self, attempt: Attempt) -> Exchange:
        assert self.group is not None
        remove_tree(self._place(attempt))
        make_directory(self._place(attempt))
        self._seen = self.milestone()
        job = self.job.model_copy(update=self._outputs(attempt))
        examples = [str(artifact.path) for artifact in self.reads]
        places = yield from rendezvous(self.group.size, self.meeting, LOOPBACK)
        asks = []
        for worker, place in enumerate(places):
            group = None if place is None else ProcessGroup(**place._asdict())
            own = job.model_copy(update={"process_group": group})
            label, files = f"round {job.round}", self.files_of(own)
            asks.append(Ask("update", (own, examples), worker=worker, label=label, files=files))
        answers = yield Asks(asks, self.patience)
        return answers[0]

    def files_of(self, job: UpdateJob) -> Files:
        """Return what one worker reads and, when it is the one that writes, makes."""
        if not job.writes:
            return self.files()
        log = Path(job.log_path)
        return self.files(writes=[log.parent], live=[log, self.folder.checkpoints])

    def _place(self, attempt: Attempt) -> Path:
        return self.folder.attempts / f"train-e{attempt.epoch:06d}-{attempt.number:04d}"

    def _outputs(self, attempt: Attempt) -> dict[str, str | None]:
        """Return where a try puts what it writes besides checkpoints, by the job's field."""
        finals = self._finals()
        place = self._place(attempt)
        return {n: None if p is None else str(place / Path(p).name) for n, p in finals.items()}

    def _finals(self) -> dict[str, str | None]:
        return {
            "output_dir": self.job.output_dir,
            "log_path": self.job.log_path,
            "optimizer_output": self.job.optimizer_output,
        }

    # --- what came

    def commit(
        self, attempt: Attempt, answer: UpdateOutcome, inputs: dict[str, str], guard: Guard
    ) -> Sequence[UpdateFiles]:
        self.timings = {name: v for name, v in answer.metrics.items() if "second" in name}
        summary = {OUTCOME: _without_clock(answer).model_dump_json()}
        return [self._move(attempt, guard, inputs=inputs, summary=summary)]

    def settled(self, attempt: Attempt, error: PawlError, guard: Guard) -> Summary | None:
        """Numbers that are not finite are an outcome: the round goes on with the log of the steps before."""
        if not isinstance(error, DivergenceError):
            return None
        self._move(attempt, guard, only_log=True)
        return {DIVERGED: str(error)}

    def _move(
        self,
        attempt: Attempt,
        guard: Guard,
        *,
        only_log: bool = False,
        inputs: Mapping[str, str] | None = None,
        summary: Summary | None = None,
    ) -> UpdateFiles:
        """Move what the try left to its place in the round, its marker last, and remove the rest of it."""
        finals, place = self._finals(), self._place(attempt)
        with committing(guard):
            sync_files(place)
            remove_file(self.folder.update_files)
            for name, made in self._outputs(attempt).items():
                final = finals[name]
                if made is None or final is None:
                    continue
                if only_log and name != "log_path":  # of an update that this one was to replace
                    _remove(Path(final))
                    continue
                if Path(final).is_dir():  # from before a crash between here and the marker
                    remove_tree(Path(final))
                if Path(made).exists():
                    move(Path(made), Path(final))
            record = record_update(self.folder, inputs or {}, summary or {})
            remove_tree(place)
        return record

    # --- how far it is, and when its workers die

    def milestone(self) -> int:
        return newest_step(self.folder.checkpoints)

    def look_up(self, attempt: Attempt) -> None:
        """Tell each optimizer step after those seen, from the log that the trainer writes."""
        try:
            lines = self._log(attempt).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines[self._seen :]:
            try:
                row = json.loads(line)
            except ValueError:  # the trainer is writing this line
                return
            self._seen += 1
            self.on_step({"step": self._seen, **row})

    def died(self, attempt: Attempt, error: WorkerLostError, deaths: int) -> str:
        if deaths == 1:
            self._died_at.clear()
        self._died_at.append(_logged_steps(self._log(attempt)) + 1)
        remove_tree(self._place(attempt))
        at, newest = self._died_at[-1], self.milestone()
        return f"the update died while making step {at} and goes on after step {newest}: {error}"

    def given_up(self, error: WorkerLostError, deaths: int) -> PawlError:
        """Without memory it may go on later, or on a machine that has some."""
        kind = WorkerMemoryError if isinstance(error, WorkerMemoryError) else TrainingError
        steps = ", ".join(map(str, sorted(set(self._died_at))))
        return kind(
            explain(
                f"the training worker died {deaths} times since the checkpoint of step {self.milestone()}, while "
                f"making step {steps}; the last time: {error}",
                value=deaths,
                where="cluster.max_attempts",
                fix="look at the worker's log for memory (lower training.micro_batch_size, or max_length), or set "
                "training.checkpoint_steps when the machine is taken away often; then `pawl resume`",
            )
        )

    def _log(self, attempt: Attempt) -> Path:
        return self._place(attempt) / Path(self.job.log_path).name


def update_task(
    scope: RoundScope, job: UpdateJob, earlier: Sequence[Path], expected_steps: int
) -> UpdateTask:
    """The update of a round.

    Args:
        scope: the round; its own examples come first.
        job: the update.
        earlier: example files of earlier rounds.
        expected_steps: optimizer steps, for the progress bar.
    """
    run, folder, cluster = scope.run, scope.folder, scope.run.config.cluster

    def report(row: Mapping[str, Any]) -> None:
        run.events.emit(
            EventKind.TRAINING_STEP,
            round_index=scope.index,
            phase="train",
            step=row["step"],
            steps=expected_steps,
            loss=row.get("train/loss"),
        )

    carried = () if job.optimizer_state is None else (job.optimizer_state,)
    rounds = run.folder.path / "rounds"
    examples = [*folder.shards("examples"), *earlier]
    return UpdateTask(
        key=f"{folder.path.name}/update",
        name="update",
        group=run.groups.train,
        reads=tuple(RecordFile(path.relative_to(rounds).as_posix(), path) for path in examples),
        makes=(UpdateFolder(folder, run.store.directory(scope.index)),),
        input_digests=_made_from(scope, job),
        takes_others=True,  # the same update with other reference log-probs replaces it
        folders=(
            *policy_files(job.policy, *job.reference_versions).reads,
            *carried,
            str(folder.checkpoints),
        ),
        job=job,
        folder=folder,
        patience=Patience(cluster.training_timeout_seconds, "cluster.training_timeout_seconds"),
        meeting=Patience(cluster.start_timeout_seconds, "cluster.start_timeout_seconds"),
        on_step=report,
    )


_HOW = {
    "engine",
    "workers",
    "sharding",
    "group_timeout_seconds",
    "checkpoint_steps",
    "checkpoint_seconds",
}
"""Settings that say how an update is made and not what it makes; of the engine only its type is compared."""


def _made_from(scope: RoundScope, job: UpdateJob) -> dict[str, str]:
    """Digests of an update's job, without its paths, and of the settings that decide what it makes."""
    options = scope.stage.training.model_dump(mode="json", exclude=_HOW)
    paths = {"output_dir", "log_path", "optimizer_output", "checkpoint_dir", "optimizer_state"}
    rounds = scope.run.folder.path / "rounds"
    rows = {Path(p).relative_to(rounds).as_posix(): kept for p, kept in job.example_rows.items()}
    facts = job.model_dump(
        mode="json", exclude=paths | {"policy", "reference_versions", "example_rows"}
    )
    engine = scope.stage.training.engine.type
    found = input_digests(
        [facts, options, str(engine), {"example_rows": rows}],
        job.policy,
        *job.reference_versions,
        plug_ins=scope.run.plug_ins,
    )
    if job.optimizer_state is not None:
        found["optimizer"] = file_sha256(Path(job.optimizer_state))
    return found


def _without_clock(outcome: UpdateOutcome) -> UpdateOutcome:
    """The journal holds no clocks, and no NaN, which JSON has no word for; the trainer's log has both."""
    kept = {
        name: value
        for name, value in outcome.metrics.items()
        if "second" not in name and math.isfinite(value)
    }
    return outcome.model_copy(update={"metrics": kept})


def _remove(path: Path) -> None:
    remove_tree(path) if path.is_dir() else remove_file(path)


def _logged_steps(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:  # it died before its first step
        return 0
