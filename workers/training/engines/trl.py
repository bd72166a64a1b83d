"""Training with TRL's own DPOTrainer, KTOTrainer and SFTTrainer, on our token ids, masks and reference log-probs.

TRL would tokenise text, mask by prompt boundary, find its reference by name and pair completions with their
neighbours (see docs/decisions.md). Each of these is replaced by what the round already knows; the objective, the
loop, the optimizer and its schedule stay TRL's. The only module that imports trl.
"""

from __future__ import annotations

import functools
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from policies.base.bounds import MAX_COUNT, MAX_CPUS
from policies.base.component import Component
from policies.base.errors import ConfigurationError, TrainingError, boundary
from policies.base.requirements import Requirements
from policies.examples.kinds import Example, TokenSequence
from policies.objectives.loss import Loss, PairLoss, ReferencedLoss, UnpairedLoss
from workers.cluster.gpus import require_one_gpu, visible_gpus
from workers.training.batches.plan import (
    completion_scored,
    longest_sides,
    require_some,
    select,
    share_of,
)
from workers.training.batches.prepare import Feed, feed_of
from workers.training.batches.reference_logprobs import ReferenceScores, check_mask, score_reference
from workers.training.checkpoints.store import Checkpoint, Checkpoints, inputs_digest
from workers.training.checkpoints.tensor_files import refusals_told
from workers.training.distributed.process_group import WorkerGroup, joined
from workers.training.engine import (
    AdapterSettings,
    TrainingEngine,
    TrainingOptions,
    UpdateJob,
    UpdateOutcome,
)
from workers.training.memory import patient_threads
from workers.training.refusals import refused_because
from workers.training.router_loss import router_loss, routers_recorded, set_router_loss
from workers.training.step_log import StepLog
from workers.training.trl_parts.arguments import lora_config, loss_arguments, training_arguments
from workers.training.trl_parts.finishing import carry_optimizer, gathered, save_candidate
from workers.training.trl_parts.resumable import TrainerParts, load_trained_weights
from workers.training.trl_parts.steps import Steps

_EAGER_LIMIT = 512
"""On a CPU, plain attention beats the fused kernel (whose backward is slow) for sequences up to about this length."""


class TRLEngine(TrainingEngine):
    """DPO- and KTO-family updates and SFT with TRL, of all weights or of a LoRA adapter."""

    class Config(Component.Config):
        """Settings of the engine."""

        attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
        """Attention kernel of transformers; auto is eager for short sequences on a CPU, else sdpa."""
        threads: int | None = Field(default=None, ge=1, le=MAX_CPUS)
        """CPU threads; null uses every core that the process may use."""
        probe_sequences: int = Field(default=32, ge=0, le=MAX_COUNT)
        """Sequences that the trainer scores to compare its log-probs with the sampler's."""
        trust_remote_code: bool = False
        """Run Python code that comes with the model. Off unless you have read that code."""

        def requires(self) -> Requirements:
            """The packages that it trains with."""
            packages = ("trl", "torch", "transformers", "safetensors", "numpy")
            return super().requires() + Requirements(packages=packages)

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
        return refused_because(loss, options, adapter)

    def update(self, job: UpdateJob, examples: Sequence[Example]) -> UpdateOutcome:
        from workers.training.checkpoints.weights import candidate_directory, quiet_transformers
        from workers.training.memory import kept_memory, torch_threads

        name = self.loss.config.type
        if self.loss.reference_names:
            check_mask(job, self.options)
        kept, dropped = select(
            examples, kind=self.loss.kind, max_length=self.options.max_length, loss=name
        )
        require_some(kept, dropped)
        quiet_transformers()
        require_one_gpu(visible_gpus())
        device, place = _device(), job.process_group
        timeout = self.options.group_timeout_seconds
        with (
            torch_threads(self.config.threads, shared_by=place.local_world_size if place else 1),
            kept_memory(enabled=device == "cpu"),
            candidate_directory(Path(job.output_dir), writes=job.writes) as target,
            boundary(TrainingError, f"the TRL update of round {job.round} failed"),
            refusals_told(Path(job.output_dir)),
            joined(
                place,
                timeout_seconds=timeout,
                device=device,
                sharded=self.options.sharding == "fsdp",
            ) as group,
        ):
            return _Update(self, job, kept, dropped, device, group).run(target)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class _Update:
    """One update from loading to saving; everything it holds dies with it."""

    def __init__(
        self,
        engine: TRLEngine,
        job: UpdateJob,
        examples: list[Example],
        dropped: dict[str, int],
        device: str,
        group: WorkerGroup,
    ) -> None:
        self.engine, self.job, self.dropped, self.device = engine, job, dropped, device
        self.group = group
        self.loss, self.options = engine.loss, job.scaled(engine.options)
        self.sampled = examples
        """With the masks that they were sampled with."""
        every_token = self.options.loss_mask == "completion"
        self.examples = [completion_scored(e) for e in examples] if every_token else examples
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def run(self, target: Path | None) -> UpdateOutcome:
        """`target` is None for a worker that does not write."""
        from transformers import AutoTokenizer

        from workers.training.checkpoints.weights import check_loaded, load_model

        job, source = self.job, Path(self.job.policy.path)
        checkpoints = self._checkpoints()
        start = self._agreed_start(checkpoints)
        log = StepLog(
            Path(job.log_path) if job.writes else None, start.state["log"] if start else ()
        )
        model = load_model(str(source), **self._loading())
        set_router_loss(model, wanted=self.options.router_aux_loss)
        tried = self.examples[0].sequences()[0].token_ids
        check_loaded(model, tried, precision=self.options.precision)
        tokenizer = AutoTokenizer.from_pretrained(  # nosec B615 # a checked folder
            source, trust_remote_code=self.engine.config.trust_remote_code
        )
        self._lap("load")
        feed = feed_of(
            self.loss,
            self.examples,
            self.options,
            seed=job.seed,
            pad=tokenizer.pad_token_id or 0,
            score_reference=lambda partners: self._reference(model, partners),
        )
        self._lap("reference")
        with tempfile.TemporaryDirectory(dir=target, prefix=".trainer-") as scratch:
            parts = self._parts(feed, log, checkpoints, start)
            trainer = self._trainer(model, tokenizer, feed, parts, scratch)
            if start is not None:
                load_trained_weights(trainer.model, start)
            if self.group.sharded:
                from workers.training.distributed.fsdp import shard

                shard(trainer, self.device)
            trainer.train()
            carry_optimizer(trainer, job, self.options)
            trained = trainer.model
            del trainer
        self._lap("steps")
        adapter, probes = self.engine.adapter, [e.sequences()[0] for e in self.sampled[:2]]
        if self.group.sharded:
            trained = gathered(trained, job, self._loading(), adapter)
        if target is not None:
            save_candidate(trained, job, target, adapter=adapter, probes=probes)
        self._lap("save")
        return self._outcome(log, feed, 0 if start is None else start.step)

    def _checkpoints(self) -> Checkpoints:
        engine, options = self.engine, self.options
        inputs = inputs_digest(
            self.job,
            self.sampled,
            engine=engine.config,
            loss=self.loss.config,
            options=options,
            adapter=engine.adapter,
        )
        return Checkpoints(self.job.checkpoint_dir, inputs, options=options)

    def _agreed_start(self, checkpoints: Checkpoints) -> Checkpoint | None:
        """The checkpoint to go on from, the same on every worker."""
        start = checkpoints.newest()
        self.group.require_same(0 if start is None else start.step, "the newest checkpoint's step")
        if self.job.writes:
            checkpoints.keep_only(start)
        return start

    def _loading(self) -> dict[str, Any]:
        attention: str = self.engine.config.attention
        if attention == "auto":
            short = max(longest_sides(self.examples)) <= _EAGER_LIMIT
            attention = "eager" if self.device == "cpu" and short else "sdpa"
        remote = self.engine.config.trust_remote_code
        return {"device": self.device, "attention": attention, "trust_remote_code": remote}

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._mark
        self._mark = now

    def _reference(self, model: Any, partners: Sequence[TokenSequence]) -> ReferenceScores:
        from workers.training.checkpoints.weights import load_reference

        job = self.job
        return score_reference(
            job,
            [s for e in self.examples for s in e.sequences()],
            partners,
            sampled=[s for e in self.sampled for s in e.sequences()],
            policy_model=model,
            load_reference=lambda: load_reference(
                job.reference, job.reference_versions, **self._loading()
            ),
            precision=self.options.precision,
            probe=self.engine.config.probe_sequences,
            group=self.group,
        )

    def _parts(
        self, feed: Feed, log: StepLog, checkpoints: Checkpoints, start: Checkpoint | None
    ) -> TrainerParts:
        weighted = any(e.weight != 1.0 for e in self.examples)
        parted = feed.plan.accumulation > 1 or self.group.size > 1
        return TrainerParts(
            loss=self.loss,
            options=self.options,
            batches=share_of(feed.plan.microbatches, self.group.rank, self.group.size),
            collate=feed.collate,
            log=log,
            accumulation=feed.plan.accumulation,
            step_rows=feed.plan.step_rows,
            # TRL knows no weights, and takes means over a forward pass and then over workers: that is the mean of the
            # step where one forward pass holds all of its rows.
            custom=not self.loss.trl_computes or weighted or parted,
            across_rows=self.loss.across_rows and parted,
            optimizer_state=self.job.optimizer_state if self.options.optimizer == "carry" else None,
            seed=self.job.seed,
            checkpoints=checkpoints,
            start=start,
            group=self.group,
        )

    def _trainer(
        self, model: Any, tokenizer: Any, feed: Feed, parts: TrainerParts, scratch: str
    ) -> Any:
        from datasets import Dataset
        from transformers import PrinterCallback

        trainer_class, config_class = trainer_classes(self.loss)
        arguments = training_arguments(
            self.options,
            feed.plan,
            seed=self.job.seed,
            scratch=scratch,
            use_cpu=self.device == "cpu",
        )
        trainer_class.pawl = parts
        asked = config_class(**arguments, **loss_arguments(self.loss, feed.class_weights))
        require_one_gpu(asked.n_gpu)  # what decides whether transformers wraps the model
        trainer = trainer_class(
            model=model,
            args=asked,
            data_collator=feed.collate,
            train_dataset=Dataset.from_dict({"row": list(range(len(self.examples)))}),
            processing_class=tokenizer,
            peft_config=None if self.engine.adapter is None else lora_config(self.engine.adapter),
        )
        trainer.remove_callback(PrinterCallback)
        score_with_ours(model, sum_squares=self.loss.needs_alignment)
        return trainer

    def _outcome(self, log: StepLog, feed: Feed, done: int) -> UpdateOutcome:
        tokens = self.options.epochs * sum(
            len(s.token_ids) for e in self.examples for s in e.sequences()
        )
        metrics = {**log.means(), **feed.metrics}
        reward = log.final_mean("rewards/chosen")
        if reward is not None and isinstance(self.loss, ReferencedLoss):
            metrics["policy/chosen_logratio"] = reward / self.loss.config.beta
        metrics["train/tokens_per_second"] = (
            tokens * (1 - done / len(log.steps)) / self.seconds["steps"]
        )
        metrics.update({f"train/seconds_{name}": value for name, value in self.seconds.items()})
        return UpdateOutcome(
            num_examples=len(self.examples),
            num_steps=len(log.steps),
            num_tokens=tokens,
            dropped=self.dropped,
            metrics=metrics,
        )


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
