"""A training engine without a model: writes a small policy whose skill has risen, the same bytes for the same job.

It is shipped for tests, for trying a config in milliseconds, and as the smallest example of an engine. It keeps the
whole contract: what it refuses, what it drops and counts, the log, the metrics, all or nothing on disk.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from policies.base.bounds import MAX_ROUNDS, MAX_SCORE, MAX_SECONDS
from policies.base.component import Component
from policies.base.errors import TrainingError, explain
from policies.base.requirements import Hosting, Requirements
from policies.examples.kind import Example
from policies.storage.artifacts import content_digest
from policies.storage.fake_model import read_skill, write_fake_model
from policies.storage.files import write_json
from workers.training.batches.plan import count_kept, plan_batches, require_some, select
from workers.training.batches.reference_logprobs import check_mask, check_recorded
from workers.training.checkpoints.candidate import check_candidate
from workers.training.checkpoints.store import Checkpoints, inputs_digest
from workers.training.checkpoints.weights import candidate_directory, copy_side_files
from workers.training.engine import TrainingEngine, UpdateJob, UpdateOutcome
from workers.training.step_log import StepLog


class FakeTrainingEngine(TrainingEngine):
    """Raises the policy's skill by a step when an example favours something."""

    class Config(Component.Config):
        """Settings of the script."""

        skill_step: float = Field(default=0.1, ge=-1, le=1)
        """How much skill an update adds; below 0 it makes the policy worse."""
        seconds_per_step: float = Field(default=0.0, ge=0, le=MAX_SECONDS)
        """Sleep in each optimizer step, to look like work."""
        diverge_in_round: int | None = Field(default=None, ge=0, le=MAX_ROUNDS)
        """Round whose update ends with a loss that is not a number."""
        logprob_gap: float = Field(default=0.0, ge=0, le=MAX_SCORE)
        """Distance of sampler and trainer that it reports, in nats a token."""

        def requires(self) -> Requirements:
            """No GPU and no tokenizer: it follows its script."""
            usual = super().requires()
            script = (usual.hosting or Hosting()).model_copy(update={"gpus": 0, "scripted": True})
            return usual + Requirements(hosting=script)

    config: Config

    def update(self, job: UpdateJob, examples: Sequence[Example]) -> UpdateOutcome:
        config = self.config
        options = job.scaled(self.options)
        kept, dropped = select(
            examples, kind=self.loss.kind, max_length=options.max_length, loss=self.loss.config.type
        )
        require_some(kept, dropped)
        if self.loss.reference_names:
            check_mask(job, options)
            if job.logprobs == "rollout":
                check_recorded(job)
        checkpoints = Checkpoints(
            job.checkpoint_dir,
            inputs_digest(
                job,
                kept,
                engine=config,
                loss=self.loss.config,
                options=options,
                adapter=self.adapter,
            ),
            options=options,
        )
        with candidate_directory(Path(job.output_dir), writes=job.writes) as target:
            log = self._steps(job, kept, checkpoints)
            if target is not None:
                self._write(job, kept, target)
        sequences = [s for e in kept for s in e.sequences()]
        return UpdateOutcome(
            num_examples=len(kept),
            num_steps=len(log.steps),
            num_tokens=options.epochs * sum(len(s.token_ids) for s in sequences),
            dropped=dropped,
            metrics={
                **log.means(),
                **count_kept(kept),
                "health/logprob_gap": self.config.logprob_gap,
                "health/logprob_gap_max": self.config.logprob_gap,
            },
        )

    def _steps(self, job: UpdateJob, kept: Sequence[Example], checkpoints: Checkpoints) -> StepLog:
        config = self.config
        start = checkpoints.newest()
        if job.writes:
            checkpoints.keep_only(start)
        log = StepLog(
            Path(job.log_path) if job.writes else None, start.state["log"] if start else ()
        )
        num_steps = self._num_steps(kept, job.seed)
        for step in range(len(log.steps), num_steps):
            time.sleep(config.seconds_per_step)
            log.record(self._step(step, job))
            if job.writes and checkpoints.due(step + 1, num_steps):
                checkpoints.save(step + 1, {"log": log.steps}, lambda folder: None)
        return log

    def _write(self, job: UpdateJob, kept: Sequence[Example], target: Path) -> None:
        config = self.config
        source = Path(job.policy.path)
        skill = self._skill(source) + (config.skill_step if any(e.favours() for e in kept) else 0.0)
        copy_side_files(source, target)
        lineage = f"{job.policy.digest} {job.reference} {job.seed} {content_digest(kept)}"
        write_fake_model(target, round(min(1.0, max(0.0, skill)), 6), seed=lineage)
        check_candidate(target, source, untrained=job.policy.parent is None)
        if job.optimizer_output is not None and self.options.optimizer == "carry":
            digest = hashlib.sha256(lineage.encode()).hexdigest()
            write_json(Path(job.optimizer_output), {"moments": digest})

    def _num_steps(self, examples: Sequence[Example], seed: int) -> int:
        return plan_batches(
            [len(e.sequences()[0].token_ids) for e in examples],
            batch_size=self.options.batch_size,
            micro_batch_size=self.options.micro_batch_size,
            epochs=self.options.epochs,
            seed=seed,
        ).num_steps

    def _step(self, step: int, job: UpdateJob) -> dict[str, float]:
        diverged = self.config.diverge_in_round == job.round
        learned = 0.1 * step
        loss = float("nan") if diverged else 0.693147 / (1 + learned)
        common = {
            "loss": loss,
            "learning_rate": job.scaled(self.options).learning_rate,
            "grad_norm": 1.0,
            "entropy": 1.0,
        }
        if not self.loss.reference_names:
            return {**common, "nll": loss}
        return {
            **common,
            "rewards/chosen": learned,
            "rewards/rejected": -learned,
            "rewards/margins": 2 * learned,
            "logps/chosen": -10.0 + learned,
            "logps/rejected": -10.0 - learned,
        }

    def _skill(self, source: Path) -> float:
        try:
            return read_skill(source)
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(
                explain(
                    "the fake training engine trains fake policies only",
                    value=str(source),
                    where="policy.model",
                    fix="make one with policies.storage.fake_model.write_fake_model, or use another training.engine",
                )
            ) from error
