"""A training engine without a model: writes a small policy whose skill has risen, the same bytes for the same job.

It is shipped for tests, for trying a config in milliseconds, and as the smallest example of an engine. The rest of the
contract (what is refused, dropped, counted, logged, gone on from) is the procedure's, `workers/training/update.py`.
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
from workers.training.checkpoints.weights import copy_side_files
from workers.training.distributed.process_group import WorkerGroup
from workers.training.engine import StepBatch, StepEngine
from workers.training.job import UpdateJob
from workers.training.step_loss import StepLoss


class FakeTrainingEngine(StepEngine):
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

    scripted = True

    def load(self, job: UpdateJob, examples: Sequence[Example]) -> dict[str, float]:
        self.job, self.examples = job, examples
        self.group = WorkerGroup(0 if job.process_group is None else job.process_group.rank)
        gap = self.config.logprob_gap
        return {"health/logprob_gap": gap, "health/logprob_gap_max": gap}

    def forward_backward(self, batch: StepBatch, loss: StepLoss) -> dict[str, float]:
        time.sleep(self.config.seconds_per_step)
        learned = 0.1 * batch.number
        diverged = self.config.diverge_in_round == self.job.round
        common = {
            "loss": float("nan") if diverged else 0.693147 / (1 + learned),
            "learning_rate": self.job.scaled(self.options).learning_rate,
            "entropy": 1.0,
        }
        if not self.loss.reference_names:
            return {**common, "nll": common["loss"]}
        return {
            **common,
            "rewards/chosen": learned,
            "rewards/rejected": -learned,
            "rewards/margins": 2 * learned,
            "logps/chosen": -10.0 + learned,
            "logps/rejected": -10.0 - learned,
        }

    def step(self, learning_rate: float) -> float:
        return 1.0

    def save(self, folder: Path) -> tuple[str, ...]:
        source = Path(self.job.policy.path)
        favoured = any(example.favours() for example in self.examples)
        skill = self._skill(source) + (self.config.skill_step if favoured else 0.0)
        copy_side_files(source, folder)
        write_fake_model(folder, round(min(1.0, max(0.0, skill)), 6), seed=self._lineage())
        return ()

    def carry_optimizer(self, path: Path) -> None:
        digest = hashlib.sha256(self._lineage().encode()).hexdigest()
        if self.group.writes:
            write_json(path, {"moments": digest})

    def _lineage(self) -> str:
        job = self.job
        return f"{job.policy.digest} {job.reference} {job.seed} {content_digest(self.examples)}"

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
