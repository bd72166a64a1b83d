"""The one procedure of an update: from the examples of a round to a candidate that may be published, or to nothing.

In order: select what can be learned from, check masks and recorded log-probs, load, find where to go on, score the
reference, plan the batches, then step after step (seed, gradient, finite or the end, weights, log, checkpoint), then
check and write the candidate. The engine computes; the order, and what is told of it, is here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.errors import TrainingError, boundary
from policies.base.seeds import derive_seed
from policies.examples.kind import Example, TokenSequence
from policies.examples.scored_batch import TokenScores
from policies.objectives.loss import ReferencedLoss
from workers.cluster.heartbeat import report_progress
from workers.training.batches.plan import (
    MicroBatch,
    completion_scored,
    count_kept,
    require_some,
    select,
    share_of,
)
from workers.training.batches.prepare import Feed, feed_of, plan_of
from workers.training.batches.reference_logprobs import (
    ReferenceScores,
    Scorer,
    check_mask,
    check_recorded,
    score_reference,
    told,
)
from workers.training.checkpoints.candidate import check_candidate, check_finite
from workers.training.checkpoints.optimizer_state import read_moments
from workers.training.checkpoints.store import Checkpoint, Checkpoints, inputs_digest
from workers.training.checkpoints.tensor_files import refusals_told
from workers.training.checkpoints.trained_state import TrainedState
from workers.training.checkpoints.weights import candidate_directory
from workers.training.distributed.process_group import WorkerGroup
from workers.training.engine import StepBatch, StepEngine, TrainingEngine
from workers.training.job import TrainingOptions, UpdateJob, UpdateOutcome
from workers.training.schedule import rate_factor
from workers.training.step_log import StepLog
from workers.training.step_loss import Objective, StepLoss

if TYPE_CHECKING:
    from torch import Tensor

    from workers.training.batches.collate import Collator


def run_update(
    engine: TrainingEngine, job: UpdateJob, examples: Sequence[Example]
) -> UpdateOutcome:
    """Make one update with whatever engine: by its steps, or by the loop that it brings.

    Raises:
        DivergenceError: a loss, gradient or weight is not finite; nothing is left in `job.output_dir`.
        TrainingError: anything else that makes the update unusable.
    """
    with (
        boundary(TrainingError, f"the update of round {job.round} failed"),
        refusals_told(Path(job.output_dir)),
    ):
        if not isinstance(engine, StepEngine):
            return engine.update(job, examples)
        update = prepared(engine, job, examples)
        with (
            candidate_directory(Path(job.output_dir), writes=job.writes) as target,
            contextlib.closing(engine),
        ):
            return _made_of_steps(engine, update, target)


@dataclass
class Update:
    """One update, with what can be learned from; made by `prepared`."""

    engine: TrainingEngine
    job: UpdateJob
    options: TrainingOptions
    """With the learning rate of this round."""
    sampled: list[Example]
    """With the masks that they were sampled with."""
    examples: list[Example]
    """With the masks that they are trained with."""
    dropped: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)
    """That the parts of the update took, by name."""
    _mark: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """End a part of the update."""
        now = time.perf_counter()
        self.seconds[name] = now - self._mark
        self._mark = now

    def sequences(self) -> list[TokenSequence]:
        """All sequences that are trained on."""
        return [s for e in self.examples for s in e.sequences()]

    def begin(self, group: WorkerGroup) -> Progress:
        """Find where to go on, the same place on every worker, and open the log."""
        engine, job = self.engine, self.job
        inputs = inputs_digest(
            job,
            self.sampled,
            engine=engine.config,
            loss=engine.loss.config,
            options=self.options,
            adapter=engine.adapter,
        )
        checkpoints = Checkpoints(job.checkpoint_dir, inputs, options=self.options)
        start = checkpoints.newest()
        group.require_same(0 if start is None else start.step, "the newest checkpoint's step")
        if job.writes:
            checkpoints.keep_only(start)
        before = start.state["log"] if start else ()
        return Progress(checkpoints, start, StepLog(self._log_path, before))

    @property
    def _log_path(self) -> Path | None:
        return Path(self.job.log_path) if self.job.writes else None

    def feed(
        self,
        *,
        pad: int,
        policy: Scorer,
        load_reference: Callable[[], Scorer],
        probe: int,
        group: WorkerGroup,
    ) -> Feed:
        """Plan the batches, and score the reference where the loss has one; see `score_reference`."""

        def scored(partners: Sequence[TokenSequence]) -> ReferenceScores:
            return score_reference(
                self.job,
                self.sequences(),
                partners,
                sampled=[s for e in self.sampled for s in e.sequences()],
                policy=policy,
                load_reference=load_reference,
                probe=probe,
                group=group,
            )

        return feed_of(
            self.engine.loss,
            self.examples,
            self.options,
            seed=self.job.seed,
            pad=pad,
            score_reference=scored,
        )

    def outcome(self, log: StepLog, metrics: Mapping[str, float]) -> UpdateOutcome:
        """Return what happened: the means of the steps, and `metrics`."""
        return UpdateOutcome(
            num_examples=len(self.examples),
            num_steps=len(log.steps),
            num_tokens=self.num_tokens,
            dropped=self.dropped,
            metrics={**log.means(), **metrics},
        )

    @property
    def num_tokens(self) -> int:
        return self.options.epochs * sum(len(s.token_ids) for s in self.sequences())

    def measured(self, progress: Progress) -> dict[str, float]:
        """Metrics of an update that was computed: how far the policy moved, and how fast."""
        log, loss = progress.log, self.engine.loss
        metrics = {f"train/seconds_{name}": value for name, value in self.seconds.items()}
        share = 1 - progress.done / len(log.steps)
        metrics["train/tokens_per_second"] = self.num_tokens * share / self.seconds["steps"]
        reward = log.final_mean("rewards/chosen")
        if reward is not None and isinstance(loss, ReferencedLoss):
            metrics["policy/chosen_logratio"] = reward / loss.config.beta
        return metrics


@dataclass(frozen=True)
class Progress:
    """Place that an update has come to."""

    checkpoints: Checkpoints
    start: Checkpoint | None
    """Where it goes on; None begins it."""
    log: StepLog

    @property
    def done(self) -> int:
        """Steps that were made before it was cut off."""
        return 0 if self.start is None else self.start.step


def prepared(engine: TrainingEngine, job: UpdateJob, examples: Sequence[Example]) -> Update:
    """Select what can be learned from, and refuse what cannot be right.

    Raises:
        TrainingError: nothing is left, or recorded log-probs are not those of the reference.
    """
    loss, options = engine.loss, job.scaled(engine.options)
    kept, dropped = select(
        examples, kind=loss.kind, max_length=options.max_length, loss=loss.config.type
    )
    require_some(kept, dropped)
    if loss.reference_names:
        check_mask(job, options)
        if job.logprobs == "rollout":
            check_recorded(job)
    every_token = options.loss_mask == "completion"
    trained = [completion_scored(e) for e in kept] if every_token else kept
    return Update(engine, job, options, kept, trained, dropped)


def _made_of_steps(engine: StepEngine, update: Update, target: Path | None) -> UpdateOutcome:
    job = update.job
    metrics = engine.load(job, update.sampled)
    progress = update.begin(engine.group)
    update.lap("load")
    feed = _feed(engine, update)
    update.lap("reference")
    _go_on(engine, update, progress.start)
    _take_steps(engine, update, feed, progress)
    update.lap("steps")
    if target is not None:
        _write_candidate(engine, update, target)
    if job.optimizer_output is not None and update.options.optimizer == "carry":
        engine.carry_optimizer(Path(job.optimizer_output))
    update.lap("save")
    found = {**feed.metrics, **metrics}
    return update.outcome(
        progress.log, found if engine.scripted else {**found, **update.measured(progress)}
    )


def _feed(engine: StepEngine, update: Update) -> Feed:
    if engine.scripted:
        plan = plan_of(update.examples, update.options, seed=update.job.seed)
        return Feed(plan, None, metrics=count_kept(update.examples))
    return update.feed(
        pad=0,
        policy=_scorer(engine, reference=False),
        load_reference=lambda: _scorer(engine, reference=True),
        probe=engine.probe_sequences,
        group=engine.group,
    )


def _scorer(engine: StepEngine, *, reference: bool) -> Scorer:
    from policies.objectives.logprobs import scored_in_batches
    from workers.training.batches.collate import moved

    def score(ids: Tensor, attention: Tensor, mask: Tensor) -> TokenScores:
        tokens = {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}
        return engine.logprobs(moved(tokens, engine.device), reference=reference)

    return lambda sequences: scored_in_batches(score, sequences, on_batch=told).per_token


def _go_on(engine: StepEngine, update: Update, start: Checkpoint | None) -> None:
    """From a checkpoint of this update, or with the moments that the last round left, or from the beginning."""
    if start is not None:
        engine.load_state(TrainedState.read(start.path), start.path)
        return
    carried = update.job.optimizer_state if update.options.optimizer == "carry" else None
    if carried is not None and not engine.scripted:
        engine.load_state(TrainedState(moments=read_moments(Path(carried))), Path(carried))


def _take_steps(engine: StepEngine, update: Update, feed: Feed, progress: Progress) -> None:
    """The steps that are left; their batches and their randomness follow from their numbers and the update's seed."""
    options, plan, group = update.options, feed.plan, engine.group
    objective = Objective(
        engine.loss,
        feed.collate,
        plan.step_rows,
        engine.loss.across_rows and (plan.accumulation > 1 or group.size > 1),
        group,
    )
    shares = share_of(plan.microbatches, group.rank, group.size)
    for number in range(progress.done, plan.num_steps):
        own = shares[number * plan.accumulation : (number + 1) * plan.accumulation]
        batch = _batch(engine, update.examples, own, feed.collate)
        loss = _step_loss(engine, objective, batch)
        if not engine.scripted:
            _seed(derive_seed(update.job.seed, "step", number, group.rank))
            loss.look_ahead()
        numbers = group.averaged(engine.forward_backward(batch, loss))
        numbers["loss"] = group.mean(numbers["loss"])
        progress.log.require_finite("train/loss", numbers["loss"])
        rate = options.learning_rate * rate_factor(options, plan.num_steps, number)
        norm = engine.step(rate)
        progress.log.record({"learning_rate": rate, "grad_norm": norm, **numbers})
        _checkpoint(engine, update.job, progress, plan.num_steps)


def _batch(
    engine: StepEngine,
    examples: Sequence[Example],
    own: Sequence[MicroBatch],
    collate: Collator | None,
) -> StepBatch:
    rows = [row for part in own if part.share for row in part.rows]
    parts: list[dict[str, Any]] = []
    if collate is not None:
        from workers.training.batches.collate import moved

        parts = [moved(collate(part), engine.device) for part in own]
    return StepBatch(own[0].step, tuple(examples[row] for row in rows), parts)


def _step_loss(engine: StepEngine, objective: Objective, batch: StepBatch) -> StepLoss:
    def on_device(tensors: dict[str, Any]) -> dict[str, Any]:
        from workers.training.batches.collate import moved

        return moved(tensors, engine.device)

    return StepLoss(objective, batch.parts, engine.logprobs, on_device)


def _seed(seed: int) -> None:
    """Begin the randomness of a step (an adapter's dropout)."""
    import torch

    torch.manual_seed(seed % 2**32)


def _checkpoint(engine: StepEngine, job: UpdateJob, progress: Progress, num_steps: int) -> None:
    step = len(progress.log.steps)
    wish = job.writes and progress.checkpoints.due(step, num_steps)
    if not engine.group.agreed(wish):
        return
    state = engine.state()
    if job.writes:
        report_progress()  # the disk may take its time
        progress.checkpoints.save(step, {"log": progress.log.steps}, state.write)
        report_progress()


def _write_candidate(engine: StepEngine, update: Update, target: Path) -> None:
    """Write the new policy; refuse one that is not finite, or that cannot take its parent's place."""
    job = update.job
    if not engine.scripted:
        probes = [e.sequences()[0] for e in update.sampled[:2]]
        check_finite(probes, _scorer(engine, reference=False)(probes))
    tied = engine.save(target)
    untrained = job.policy.parent is None
    check_candidate(target, Path(job.policy.path), untrained=untrained, tied=tied)
