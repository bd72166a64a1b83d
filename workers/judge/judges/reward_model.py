"""Score attempts with a reward model: a sequence classifier with one output, in batches, without a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from policies.base.attempt_answer import written_by
from policies.base.bounds import MAX_COUNT, MAX_TOKENS
from policies.base.errors import ConfigurationError, JudgeError, boundary, explain
from policies.base.records import Trajectory
from policies.base.requirements import POLICY, ModelRequirement, Requirements
from workers.judge.judge import BackendContext, Judge
from workers.judge.scoring_judge import ScoringJudge, ToScore
from workers.judge.sequence_classifier import SequenceClassifier
from workers.rollout.engine import NumberFormat


class RewardModel(ScoringJudge):
    """The reward is the model's output for the task and the answer in its own chat template."""

    class Config(Judge.Config):
        """Settings of the reward model."""

        model: str
        """Hub id, or a directory with safetensors: any `AutoModelForSequenceClassification`."""
        output: int | None = Field(default=None, ge=0, le=MAX_COUNT)
        """Which of its outputs is the reward, counted from 0; null where it has one."""
        scale: Literal["raw", "sigmoid"] = "raw"
        """The output as it is, any number; or as the probability `sigmoid(output)` in [0, 1]."""
        reads: Literal["answer", "everything"] = "answer"
        """What of an attempt is scored: its answer, without thoughts, or its last turn as it was written."""
        batch_size: int = Field(default=16, ge=1, le=MAX_COUNT)
        """Sequences of one forward pass."""
        max_length: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
        """Longest task and answer in tokens; null takes the model's positions. What is longer is an error."""
        dtype: NumberFormat | None = None
        """Number format of its weights; null takes the policy's."""
        trust_remote_code: bool = False
        """Run Python code that comes with the model. Off unless you have read that code."""

        @model_validator(mode="after")
        def _is_no_policy(self) -> Self:
            if self.model == POLICY:
                what = "the policy is no sequence classifier"
                where = f"model of judge {self.source!r}"
                fix = "name a reward model"
                raise ConfigurationError(explain(what, value=self.model, where=where, fix=fix))
            return self

        def requires(self) -> Requirements:
            """The model, one copy in each judge worker."""
            model = ModelRequirement(
                name=self.model, dtype=self.dtype, gpus=1, trusts_code=self.trust_remote_code
            )
            raw = self.scale == "raw"
            return super().requires() + Requirements(models=(model,), raw_scores=raw)

    config: Config

    def __init__(self, config: Config, *, context: BackendContext) -> None:
        super().__init__(config, context=context)
        self._classifier: SequenceClassifier | None = None
        self._identity = f"reward model {config.model}"

    def start(self) -> None:
        """Load the model.

        Raises:
            JudgeError: it cannot be had, or is no classifier with the output that is asked for.
        """
        config, dtype = self.config, self.config.dtype or self.context.dtype
        with boundary(JudgeError, f"the reward model {config.model!r} cannot be loaded"):
            version = self.context.model_version(config.model)
            self._classifier = SequenceClassifier(
                version,
                dtype=dtype,
                output=config.output,
                max_length=config.max_length,
                trust_remote_code=config.trust_remote_code,
            )
        self._identity = f"reward model {config.model} {version.digest[:12]} {dtype}"

    def identity(self) -> str:
        return self._identity

    def text(self, attempt: Trajectory) -> str:
        if self.config.reads == "everything" and self.config.level == "trajectory":
            return written_by(attempt)
        return super().text(attempt)

    def score(self, batch: Sequence[ToScore]) -> list[float | str]:
        assert self._classifier is not None
        chats = [each.messages for each in batch]
        found, tokens = self._classifier.outputs(chats, batch_size=self.config.batch_size)
        self.usage["calls"] += len(batch)
        self.usage["prompt_tokens"] += tokens
        if self.config.scale == "raw":
            return found
        return [v if isinstance(v, str) else _sigmoid(v) for v in found]


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))
