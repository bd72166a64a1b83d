"""The training engine seam: a step engine computes and `update.py` orders, or an engine brings a loop of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from policies.base.component import Component, Family
from policies.base.errors import ConfigurationError
from policies.base.requirements import Hosting, Requirements
from policies.examples.kind import Example
from policies.examples.scored_batch import TokenScores
from policies.objectives.loss import Loss
from workers.training.checkpoints.trained_state import TrainedState
from workers.training.distributed.process_group import WorkerGroup
from workers.training.job import AdapterSettings as AdapterSettings
from workers.training.job import ProcessGroup as ProcessGroup
from workers.training.job import TrainingOptions as TrainingOptions
from workers.training.job import UpdateJob as UpdateJob
from workers.training.job import UpdateOutcome as UpdateOutcome
from workers.training.refusals import refused_because
from workers.training.step_loss import StepLoss

if TYPE_CHECKING:
    from torch import Tensor


class TrainingEngine(Component):
    """Applies updates. Constructor: `(config, *, loss, options, adapter)`; lives as long as the run.

    Most engines are a `StepEngine`; one that brings a loop of its own gives `update`, and `update.py` has what it needs
    to keep the same contract (what is dropped, refused, gone on from and told).
    """

    def __init__(
        self,
        config: Component.Config,
        *,
        loss: Loss,
        options: TrainingOptions,
        adapter: AdapterSettings | None,
    ) -> None:
        self.config = config
        self.loss = loss
        self.options = options
        self.adapter = adapter
        refused = self.refused(loss, options, adapter)
        if refused is not None:
            raise ConfigurationError(refused)

    @classmethod
    def usual_requirements(cls, config: Component.Config) -> Requirements:
        """Say that a training process works with a GPU, where there is one."""
        trusts = dict(config).get("trust_remote_code", False) is True
        hosting = Hosting(trusts_code=trusts)
        return super().usual_requirements(config) + Requirements(hosting=hosting)

    @classmethod
    def refused(
        cls, loss: Loss, options: TrainingOptions, adapter: AdapterSettings | None
    ) -> str | None:
        """Tell why these settings cannot be trained with this engine, or None; asked before a run starts."""
        return None

    def update(self, job: UpdateJob, examples: Sequence[Example]) -> UpdateOutcome:
        """Train on `examples`, write the new weights to `job.output_dir`, return what happened.

        Raises:
            DivergenceError: a loss, gradient or weight is not finite; nothing is left in `output_dir`.
            TrainingError: anything else that makes the update unusable.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class StepBatch:
    """The examples of one optimizer step that one worker has."""

    number: int
    """Of the step in its update, from 0."""
    examples: tuple[Example, ...]
    parts: Sequence[dict[str, Any]] = ()
    """Microbatches, each for one forward pass: tensors on the engine's device, as `Collator` makes them."""


class StepEngine(TrainingEngine):
    """Computes the steps of updates, one update at a time: six methods, and no order among them to remember.

    `workers.training.update.run_update` calls `load`, then `logprobs` where a loss has a reference, `load_state` where
    something is gone on from, `forward_backward` and `step` for each step, `state` for checkpoints, `save`, `close`.
    """

    scripted: ClassVar[bool] = False
    """Whether it computes nothing: it then gets batches without tensors, and is asked for no log-probs."""
    device: str = "cpu"
    """Of torch; where batches go."""
    probe_sequences: int = 32
    """Sequences that it scores before training, to compare its log-probs with the sampler's."""
    group: WorkerGroup = WorkerGroup()
    """The workers that make the update together; set by `load`."""

    @classmethod
    def refused(
        cls, loss: Loss, options: TrainingOptions, adapter: AdapterSettings | None
    ) -> str | None:
        return None if cls.scripted else refused_because(loss, options, adapter)

    def load(self, job: UpdateJob, examples: Sequence[Example]) -> dict[str, float]:
        """Load the policy that training starts from; `examples` are all of the update's.

        Returns:
            metrics of its own, for the outcome.
        """
        raise NotImplementedError

    def logprobs(self, tokens: Mapping[str, Tensor], *, reference: bool = False) -> TokenScores:
        """Score tokens without gradient or noise, with the policy as it stands, or with the reference of the job.

        Args:
            tokens: `input_ids`, `attention_mask` and `completion_mask`. [S, T]
            reference: asked before the first step only.
        """
        raise NotImplementedError

    def forward_backward(self, batch: StepBatch, loss: StepLoss) -> Mapping[str, float]:
        """Add the gradient of the step's loss: the sum of `loss(part, scores)` over `batch.parts`.

        Returns:
            `loss.numbers()`, and more numbers of the step for its log.
        """
        raise NotImplementedError

    def step(self, learning_rate: float) -> float:
        """Clip the gradient, change the weights, forget the gradient; returns the norm before it was clipped."""
        raise NotImplementedError

    def state(self) -> TrainedState:
        """Return the trained weights and the optimizer's moments; every worker is asked."""
        return TrainedState()

    def load_state(self, state: TrainedState, path: Path) -> None:
        """Go on from what `state` gave; without weights from the moments alone, which the last round carried over.

        Raises:
            TrainingError: it is of another model; names `path`, where it came from.
        """

    def save(self, folder: Path) -> Collection[str]:
        """Write the policy as it stands, with all that lies beside its weights.

        Returns:
            names that hold the same numbers as others, which the parent's files may lack.
        """
        raise NotImplementedError

    def carry_optimizer(self, path: Path) -> None:
        """Write to `path` what the next round's optimizer goes on from; every worker is asked."""
        from workers.training.checkpoints.optimizer_state import save_moments

        moments = dict(self.state().moments)
        if self.group.writes:
            save_moments(moments, path)

    def close(self) -> None:
        """Forget the update, however it ended."""


TRAINING_ENGINES = Family(
    "training engine", package="workers.training.engines", base=TrainingEngine
)
