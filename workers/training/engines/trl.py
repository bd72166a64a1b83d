"""Training with TRL's own DPOTrainer, KTOTrainer and SFTTrainer, on our token ids, masks and reference log-probs.

TRL would tokenise text, mask by prompt boundary, find its reference by name and pair completions with their
neighbours (see docs/decisions.md). Each of these is replaced by what the round already knows; the objective, the
loop, the optimizer and its schedule stay TRL's. The only module that imports trl.
"""

from __future__ import annotations

import functools
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.base.component import Component
from policies.base.errors import TrainingError, boundary
from policies.base.requirements import Requirements
from policies.examples.kinds import Example
from policies.objectives.loss import Loss, PairLoss, UnpairedLoss
from workers.cluster.gpus import require_one_gpu
from workers.training.adapter import lora_config
from workers.training.batches.plan import share_of
from workers.training.batches.prepare import Feed
from workers.training.batches.reference_logprobs import Scorer, scorer
from workers.training.checkpoints.finishing import carry_optimizer, gathered, save_candidate
from workers.training.checkpoints.tensor_files import refusals_told
from workers.training.checkpoints.trained_state import TrainedState, load_trained_weights
from workers.training.distributed.process_group import WorkerGroup
from workers.training.engine import (
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
    UpdateOutcome,
)
from workers.training.local_model import (
    ModelSettings,
    load_policy,
    loading,
    set_for_training,
)
from workers.training.memory import patient_threads
from workers.training.refusals import refused_because
from workers.training.router_loss import router_loss, routers_recorded
from workers.training.step_loss import Objective
from workers.training.trl_parts.arguments import loss_arguments, training_arguments
from workers.training.trl_parts.resumable import TrainerParts
from workers.training.trl_parts.steps import Steps
from workers.training.update import Progress, Update, prepared


class TRLEngine(TrainingEngine):
    """DPO- and KTO-family updates and SFT with TRL, of all weights or of a LoRA adapter."""

    class Config(ModelSettings):
        """Settings of the engine."""

        def requires(self) -> Requirements:
            """The packages that it trains with."""
            return super().requires() + Requirements(packages=("trl",))

    config: Config

    def __init__(self, config: Component.Config, **given: Any) -> None:
        super().__init__(config, **given)
        patient_threads()

    @classmethod
    def refused(
        cls, loss: Loss, options: TrainingOptions, adapter: AdapterSettings | None
    ) -> str | None:
        return refused_because(loss, options, adapter)

    def update(self, job: UpdateJob, examples: Sequence[Example]) -> UpdateOutcome:
        from workers.training.checkpoints.weights import candidate_directory

        update = prepared(self, job, examples)
        with (
            candidate_directory(Path(job.output_dir), writes=job.writes) as target,
            boundary(TrainingError, f"the TRL update of round {job.round} failed"),
            refusals_told(Path(job.output_dir)),
            set_for_training(self.config, self.options, job) as group,
        ):
            return _Training(self, update, group).run(target)


class _Training:
    """One update from loading to saving; everything it holds dies with it."""

    def __init__(self, engine: TRLEngine, update: Update, group: WorkerGroup) -> None:
        self.engine, self.update, self.group = engine, update, group
        self.job, self.options = update.job, update.options
        self.loading = loading(engine.config, update.examples)

    def run(self, target: Path | None) -> UpdateOutcome:
        """`target` is None for a worker that does not write."""
        from transformers import AutoTokenizer

        job, update, adapter = self.job, self.update, self.engine.adapter
        progress = update.begin(self.group)
        model = load_policy(job, self.options, update.examples, self.loading)
        tokenizer = AutoTokenizer.from_pretrained(  # nosec B615 # a checked folder
            job.policy.path, trust_remote_code=self.engine.config.trust_remote_code
        )
        update.lap("load")
        feed = update.feed(
            pad=tokenizer.pad_token_id or 0,
            policy=scorer(model, self.options.precision),
            load_reference=self._reference,
            probe=self.engine.config.probe_sequences,
            group=self.group,
        )
        update.lap("reference")
        with tempfile.TemporaryDirectory(dir=target, prefix=".trainer-") as scratch:
            trainer = self._trainer(model, tokenizer, feed, self._parts(feed, progress), scratch)
            if (start := progress.start) is not None:
                saved = TrainedState.read(start.path)
                load_trained_weights(trainer.model, saved.weights, start.path)
            if self.group.sharded:
                from workers.training.distributed.fsdp import shard

                shard(trainer, self.loading["device"])
            trainer.train()
            carry_optimizer(trainer.optimizer, job, self.options)
            trained = trainer.model
            del trainer
        update.lap("steps")
        if self.group.sharded:
            trained = gathered(trained, job, self.loading, adapter)
        if target is not None:
            probes = [e.sequences()[0] for e in update.sampled[:2]]
            save_candidate(trained, job, target, adapter=adapter, probes=probes)
        update.lap("save")
        return update.outcome(progress.log, {**feed.metrics, **update.measured(progress)})

    def _reference(self) -> Scorer:
        from workers.training.checkpoints.weights import load_reference

        job = self.job
        reference = load_reference(job.reference, job.reference_versions, **self.loading)
        return scorer(reference, self.options.precision)

    def _parts(self, feed: Feed, progress: Progress) -> TrainerParts:
        loss, group = self.engine.loss, self.group
        weighted = any(e.weight != 1.0 for e in self.update.examples)
        parted = feed.plan.accumulation > 1 or group.size > 1
        return TrainerParts(
            objective=Objective(
                loss, feed.collate, feed.plan.step_rows, loss.across_rows and parted, group
            ),
            options=self.options,
            batches=share_of(feed.plan.microbatches, group.rank, group.size),
            progress=progress,
            accumulation=feed.plan.accumulation,
            # TRL knows no weights, and takes means over a forward pass and then over workers: that is the mean of the
            # step where one forward pass holds all of its rows.
            custom=not loss.trl_computes or weighted or parted,
            optimizer_state=self.job.optimizer_state if self.options.optimizer == "carry" else None,
            seed=self.job.seed,
        )

    def _trainer(
        self, model: Any, tokenizer: Any, feed: Feed, parts: TrainerParts, scratch: str
    ) -> Any:
        from datasets import Dataset
        from transformers import PrinterCallback

        loss, adapter = self.engine.loss, self.engine.adapter
        trainer_class, config_class = trainer_classes(loss)
        arguments = training_arguments(
            self.options,
            feed.plan,
            seed=self.job.seed,
            scratch=scratch,
            use_cpu=self.loading["device"] == "cpu",
        )
        trainer_class.pawl = parts
        asked = config_class(**arguments, **loss_arguments(loss, feed.class_weights))
        require_one_gpu(asked.n_gpu)  # what decides whether transformers wraps the model
        trainer = trainer_class(
            model=model,
            args=asked,
            data_collator=feed.collate,
            train_dataset=Dataset.from_dict({"row": list(range(len(self.update.examples)))}),
            processing_class=tokenizer,
            peft_config=None if adapter is None else lora_config(adapter),
        )
        trainer.remove_callback(PrinterCallback)
        score_with_ours(model, sum_squares=loss.needs_alignment)
        return trainer


def trainer_classes(loss: Loss) -> tuple[Any, Any]:
    """A fresh trainer class that steps as `trl_parts/steps.py` says, and the config class that goes with it."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

    if isinstance(loss, PairLoss):
        return type("PairTrainer", (Steps, DPOTrainer), {}), DPOConfig
    if isinstance(loss, UnpairedLoss):
        return type("UnpairedTrainer", (Steps, KTOTrainer), {}), KTOConfig
    return type("PlainTrainer", (Steps, SFTTrainer), {}), SFTConfig


def score_with_ours(model: Any, *, sum_squares: bool) -> None:
    """Replace TRL's fused head by `policies.objectives.logprobs.token_scores`, the routine that also scored the
    reference.

    Away from Triton, TRL computes logits at every position, prompts included, and its backward pass in float32:
    on a CPU that is the larger part of a step.
    """
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    from policies.objectives.logprobs import token_scores

    original = type(model).forward

    @functools.wraps(original)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(self, *args, **kwargs)
        mask, attention = kwargs["labels"] != -100, kwargs["attention_mask"]
        with routers_recorded(self) as routers:
            scores = token_scores(
                self,
                kwargs["input_ids"],
                attention,
                mask,
                statistics=torch.is_grad_enabled(),  # other passes are for log-probs only
                sum_squares=sum_squares,
            )
        return FusedCausalLMOutput(
            log_probs=scores.log_probs,
            entropy=scores.entropy,
            mean_logits=scores.mean_logits,
            is_top1=scores.top1,
            log_sum_sq_probs=scores.log_sum_squares,
            label_mask=mask[:, 1:],
            aux_loss=router_loss(self, routers, attention),
        )

    model.forward = types.MethodType(forward, model)
