"""Training with TRL's own DPOTrainer and KTOTrainer, on our token ids, masks and reference log-probs.

TRL would tokenise text, mask by prompt boundary, find its reference by name and pair completions with their
neighbours (see docs/decisions.md). Each of these is replaced by what the round already knows; the objective, the
loop, the optimizer and its schedule stay TRL's. The only module that imports trl.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from policies.component import Component
from policies.errors import ConfigurationError, TrainingError, boundary, explain
from policies.examples import Example, PreferencePair, TokenSequence, UnpairedExample
from policies.loss import Loss, PairLoss, UnpairedLoss
from workers.training.arguments import lora_config, training_arguments
from workers.training.batching import (
    Partner,
    Plan,
    mismatched_partners,
    plan_batches,
    require_some,
    select,
    sequences_of,
)
from workers.training.engine import (
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
    UpdateOutcome,
)
from workers.training.memory import patient_threads
from workers.training.steplog import StepLog
from workers.training.steps import PairSteps, TrainerParts, UnpairedSteps

if TYPE_CHECKING:
    from torch import Tensor

_EAGER_LIMIT = 512
"""On a CPU, plain attention beats the fused kernel (whose backward is slow) for sequences up to about this length."""


class TRLEngine(TrainingEngine):
    """DPO- and KTO-family updates with TRL, of all weights or of a LoRA adapter."""

    class Config(Component.Config):
        """Settings of the engine."""

        attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
        """Attention kernel of transformers; auto is eager for short sequences on a CPU, else sdpa."""
        threads: int | None = Field(default=None, ge=1)
        """CPU threads; null uses every core that the process may use."""
        probe_sequences: int = Field(default=32, ge=0)
        """Sequences that the trainer scores to compare its log-probs with the sampler's."""
        trust_remote_code: bool = False
        """Run Python code that comes with the model. Off unless you have read that code."""

    config: Config

    def __init__(
        self,
        config: Component.Config,
        *,
        loss: Loss,
        options: TrainingOptions,
        adapter: AdapterSettings | None,
    ) -> None:
        super().__init__(config, loss=loss, options=options, adapter=adapter)
        refused = self.refused(loss, options, adapter)
        if refused is not None:
            raise ConfigurationError(refused)
        patient_threads()

    @classmethod
    def refused(
        cls, loss: Loss, options: TrainingOptions, adapter: AdapterSettings | None
    ) -> str | None:
        if not isinstance(loss, (PairLoss, UnpairedLoss)):
            return explain(
                "the trl engine trains on pairs and unpaired examples",
                value=loss.config.type,
                where="training.loss",
                fix="use a pair or unpaired loss",
            )
        micro = options.micro_batch_size
        if micro is not None and options.batch_size % micro:
            return explain(
                f"micro_batch_size must divide batch_size {options.batch_size}",
                value=micro,
                where="training.micro_batch_size",
                fix="use a divisor, or null",
            )
        if adapter is not None and options.optimizer == "carry":
            return explain(
                "each round trains a new adapter, so the last round's optimizer moments belong to other weights",
                value=options.optimizer,
                where="training.optimizer",
                fix="use reset with policy.adapter",
            )
        return None

    def update(self, job: UpdateJob, examples: Sequence[Example]) -> UpdateOutcome:
        from workers.training.memory import kept_memory, torch_threads
        from workers.training.weights import candidate_directory, quiet_transformers

        name = self.loss.config.type
        kept, dropped = select(
            examples, kind=self.loss.kind, max_length=self.options.max_length, loss=name
        )
        require_some(kept, dropped)
        quiet_transformers()
        device = _device()
        with (
            torch_threads(self.config.threads),
            kept_memory(enabled=device == "cpu"),
            candidate_directory(Path(job.output_dir)) as target,
            boundary(TrainingError, f"the TRL update of round {job.round} failed"),
        ):
            return _Update(self, job, kept, dropped, device).run(target)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class _Batches:
    """What one update feeds to the trainer."""

    plan: Plan
    collate: Any
    num_desirable: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class _Update:
    """One update from loading to saving; everything it holds dies with it."""

    def __init__(
        self,
        engine: TRLEngine,
        job: UpdateJob,
        examples: list[Example],
        dropped: dict[str, int],
        device: str,
    ) -> None:
        self.engine, self.job, self.examples, self.dropped = engine, job, examples, dropped
        self.loss, self.options, self.device = engine.loss, engine.options, device
        self.lengths = [max(len(s.token_ids) for s in sequences_of(e)) for e in examples]
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def run(self, target: Path) -> UpdateOutcome:
        from transformers import AutoTokenizer

        from workers.training.weights import check_finite, load_model, save_model

        job, source = self.job, Path(self.job.policy.path)
        log = StepLog(Path(job.log_path))
        model = load_model(str(source), **self._loading())
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=self.engine.config.trust_remote_code
        )
        self._lap("load")
        batches = self._batches(model, pad=tokenizer.pad_token_id or 0)
        self._lap("reference")
        with tempfile.TemporaryDirectory(dir=target, prefix=".trainer-") as scratch:
            trainer = self._trainer(model, tokenizer, batches, log, scratch)
            trainer.train()
            if job.optimizer_output is not None and self.options.optimizer == "carry":
                from workers.training.optimizer_state import save_optimizer_state

                save_optimizer_state(trainer.optimizer, Path(job.optimizer_output))
            trained = trainer.model
            del trainer
        self._lap("steps")
        if self.engine.adapter is not None:
            trained.save_pretrained(target / "adapter", save_embedding_layers=False)
            trained = trained.merge_and_unload()
        check_finite(trained)
        save_model(trained, source, target)
        self._lap("save")
        return self._outcome(log, batches)

    def _loading(self) -> dict[str, Any]:
        attention: str = self.engine.config.attention
        if attention == "auto":
            attention = (
                "eager" if self.device == "cpu" and max(self.lengths) <= _EAGER_LIMIT else "sdpa"
            )
        remote = self.engine.config.trust_remote_code
        return {"device": self.device, "attention": attention, "trust_remote_code": remote}

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._mark
        self._mark = now

    def _plan(self, classes: Sequence[bool] | None) -> Plan:
        return plan_batches(
            self.lengths,
            batch_size=self.options.batch_size,
            micro_batch_size=self.options.micro_batch_size,
            epochs=self.options.epochs,
            seed=self.job.seed,
            classes=classes,
        )

    def _batches(self, model: Any, pad: int) -> _Batches:
        from workers.training.collate import PairCollator, UnpairedCollator
        from workers.training.reference_pass import tail_weighted_sum

        if isinstance(self.loss, PairLoss):
            pairs = cast("list[PreferencePair]", self.examples)
            scores, _, metrics = self._reference(model, [])
            sums = []
            for chosen, rejected in zip(scores[::2], scores[1::2], strict=True):
                a = tail_weighted_sum(chosen, len(rejected), self.loss.tail_weight)
                b = tail_weighted_sum(rejected, len(chosen), self.loss.tail_weight)
                sums.append((a, b))
            return _Batches(self._plan(None), PairCollator(pairs, sums, pad), metrics=metrics)
        singles = cast("list[UnpairedExample]", self.examples)
        desirable = [e.desirable for e in singles]
        plan = self._plan(desirable)
        partners = self._partners(singles, plan)
        scores, partner_scores, metrics = self._reference(model, [p.sequence for p in partners])
        mismatched = {
            p.row: (p, float(s.double().sum()))
            for p, s in zip(partners, partner_scores, strict=True)
        }
        collate = UnpairedCollator(
            singles, [float(s.double().sum()) for s in scores], mismatched, pad
        )
        return _Batches(plan, collate, num_desirable=sum(desirable), metrics=metrics)

    def _partners(self, examples: list[UnpairedExample], plan: Plan) -> list[Partner]:
        share = cast(UnpairedLoss, self.loss).kl_share
        if share == 0:
            return []
        # Every microbatch needs at least one, in every epoch; rows are alike, so the first ones do.
        rows = {row for b in plan.microbatches for row in b.rows[: math.ceil(share * len(b.rows))]}
        return list(mismatched_partners(examples, sorted(rows), seed=self.job.seed).values())

    def _reference(
        self, model: Any, partners: list[TokenSequence]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        from workers.training.reference_pass import score_reference
        from workers.training.weights import load_reference

        job = self.job
        scores = score_reference(
            job,
            [s for e in self.examples for s in sequences_of(e)],
            partners,
            policy_model=model,
            load_reference=lambda: load_reference(
                job.reference, job.reference_versions, **self._loading()
            ),
            precision=self.options.precision,
            probe=self.engine.config.probe_sequences,
        )
        return scores.sequences, scores.partners, scores.metrics

    def _trainer(
        self, model: Any, tokenizer: Any, batches: _Batches, log: StepLog, scratch: str
    ) -> Any:
        from datasets import Dataset
        from transformers import PrinterCallback

        trainer_class, config_class = trainer_classes(self.loss)
        arguments = training_arguments(
            self.options,
            batches.plan,
            seed=self.job.seed,
            scratch=scratch,
            use_cpu=self.device == "cpu",
        )
        spelled = self.loss.trl()
        arguments.update(
            loss_type=spelled.loss_type, beta=self.loss.config.beta, **spelled.arguments
        )
        if isinstance(self.loss, UnpairedLoss):
            weights = self.loss.class_weights(
                batches.num_desirable, len(self.examples) - batches.num_desirable
            )
            arguments.update(desirable_weight=weights[0], undesirable_weight=weights[1])
            batches.metrics.update(
                {"train/desirable_weight": weights[0], "train/undesirable_weight": weights[1]}
            )
        trainer_class.pawl = TrainerParts(
            loss=self.loss,
            batches=batches.plan.microbatches,
            collate=batches.collate,
            log=log,
            accumulation=batches.plan.accumulation,
            custom=self.loss.needs_custom_step or any(e.weight != 1.0 for e in self.examples),
            optimizer_state=self.job.optimizer_state if self.options.optimizer == "carry" else None,
        )
        trainer = trainer_class(
            model=model,
            args=config_class(**arguments),
            data_collator=batches.collate,
            train_dataset=Dataset.from_dict({"row": list(range(len(self.examples)))}),
            processing_class=tokenizer,
            peft_config=None if self.engine.adapter is None else lora_config(self.engine.adapter),
        )
        trainer.remove_callback(PrinterCallback)
        score_with_ours(
            model, sum_squares=isinstance(self.loss, PairLoss) and self.loss.needs_alignment
        )
        return trainer

    def _outcome(self, log: StepLog, batches: _Batches) -> UpdateOutcome:
        tokens = self.options.epochs * sum(
            len(s.token_ids) for e in self.examples for s in sequences_of(e)
        )
        metrics = {**log.means(), **batches.metrics}
        if isinstance(self.loss, PairLoss):
            metrics["train/pairs"] = float(len(self.examples))
        else:
            metrics["train/desirable"] = float(batches.num_desirable)
            metrics["train/undesirable"] = float(len(self.examples) - batches.num_desirable)
        reward = log.final_mean("rewards/chosen")
        if reward is not None:
            metrics["policy/chosen_logratio"] = reward / self.loss.config.beta
        metrics["train/tokens_per_second"] = tokens / self.seconds["steps"]
        metrics.update({f"train/seconds_{name}": value for name, value in self.seconds.items()})
        return UpdateOutcome(
            num_examples=len(self.examples),
            num_steps=len(log.steps),
            num_tokens=tokens,
            dropped=self.dropped,
            metrics=metrics,
        )


def trainer_classes(loss: Loss) -> tuple[Any, Any]:
    """A fresh trainer class that steps as `workers.training.steps` says, and the config class that goes with it."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    if isinstance(loss, PairLoss):
        return type("PairTrainer", (PairSteps, DPOTrainer), {}), DPOConfig
    return type("UnpairedTrainer", (UnpairedSteps, KTOTrainer), {}), KTOConfig


def score_with_ours(model: Any, *, sum_squares: bool) -> None:
    """Replace TRL's fused head by `policies.logprobs.token_scores`, the routine that also scored the reference.

    Away from Triton, TRL computes logits at every position, prompts included, and its backward pass in float32:
    on a CPU that is the larger part of a step. Mixtures of experts keep TRL's head, which adds their router's loss.
    """
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    from policies.logprobs import token_scores

    if hasattr(model.config.get_text_config(), "output_router_logits"):
        return
    original = type(model).forward

    @functools.wraps(original)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(self, *args, **kwargs)
        training = torch.is_grad_enabled()  # the passes without gradient are for log-probs only
        scores = token_scores(
            self,
            kwargs["input_ids"],
            kwargs["attention_mask"],
            kwargs["labels"] != -100,
            statistics=training,
            sum_squares=training and sum_squares,
        )
        return FusedCausalLMOutput(
            log_probs=scores.log_probs,
            entropy=scores.entropy,
            mean_logits=scores.mean_logits,
            is_top1=scores.top1,
            log_sum_sq_probs=scores.log_sum_squares,
        )

    model.forward = types.MethodType(forward, model)
