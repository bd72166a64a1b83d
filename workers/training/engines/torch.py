"""Training in plain PyTorch: the model of transformers, its output head in blocks, AdamW; nothing between them and us.

AdamW, its two groups, clipping and the seed of an adapter are those of transformers' Trainer, so that an update is the
one that the TRL engine makes. Several workers hold the whole model each and add their gradients up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.base.component import Component
from policies.base.errors import explain
from policies.examples.kind import Example
from policies.examples.scored_batch import TokenScores
from policies.objectives.loss import Loss
from workers.training.checkpoints.trained_state import (
    TrainedState,
    load_trained_weights,
    trained_weights,
)
from workers.training.engine import AdapterSettings, StepBatch, StepEngine, TrainingOptions
from workers.training.job import UpdateJob
from workers.training.local_model import (
    ModelSettings,
    device_of_process,
    load_policy,
    loading,
    set_for_training,
)
from workers.training.memory import patient_threads
from workers.training.router_loss import router_loss, routers_recorded
from workers.training.step_loss import StepLoss

if TYPE_CHECKING:
    from torch import Tensor


_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Names of parameters without weight decay, as in transformers 5's `Trainer.get_decay_parameter_names`."""


class TorchEngine(StepEngine):
    """Updates of every loss, of all weights or of a LoRA adapter."""

    class Config(ModelSettings):
        """Settings of the engine."""

    config: Config

    def __init__(self, config: Component.Config, **given: Any) -> None:
        super().__init__(config, **given)
        patient_threads()
        self.probe_sequences = self.config.probe_sequences
        self._open = contextlib.ExitStack()
        """What an update has been given of this process."""

    @classmethod
    def refused(
        cls, loss: Loss, options: TrainingOptions, adapter: AdapterSettings | None
    ) -> str | None:
        if options.sharding != "none":
            return explain(
                "the torch engine holds the whole model in each training worker",
                value=options.sharding,
                where="training.sharding and training.engine",
                fix="set training.sharding to none, or training.engine to trl",
            )
        return super().refused(loss, options, adapter)

    def load(self, job: UpdateJob, examples: Sequence[Example]) -> dict[str, float]:
        import torch

        self.job = job
        self.group = self._open.enter_context(set_for_training(self.config, self.options, job))
        self.device = device_of_process()
        self._loading = loading(self.config, examples)
        self.model = load_policy(job, self.options, examples, self._loading)
        self._reference: Any = None
        self.trained = self.model
        if self.adapter is not None:
            from peft import get_peft_model

            from workers.training.adapter import lora_config

            torch.manual_seed(job.seed % 2**32)
            self.trained = get_peft_model(self.model, lora_config(self.adapter))
        if self.options.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = _adamw(self.trained, self.options.weight_decay)
        return {}

    def logprobs(self, tokens: Mapping[str, Tensor], *, reference: bool = False) -> TokenScores:
        import torch

        if reference and self._reference is None:
            from workers.training.checkpoints.weights import load_reference

            job = self.job
            self._reference = load_reference(job.reference, job.reference_versions, **self._loading)
        model = self._reference if reference else self.model
        with torch.no_grad():
            return self._scores(model.eval(), tokens)

    def _scores(self, model: Any, tokens: Mapping[str, Tensor]) -> TokenScores:
        """In training also with what the step's log shows."""
        import torch

        from policies.objectives.logprobs import token_scores

        half = self.options.precision == "bf16"
        with torch.autocast(self.device, torch.bfloat16, enabled=half):
            return token_scores(
                model,
                tokens["input_ids"],
                tokens["attention_mask"],
                tokens["completion_mask"],
                statistics=torch.is_grad_enabled(),
                sum_squares=self.loss.needs_alignment,
            )

    def forward_backward(self, batch: StepBatch, loss: StepLoss) -> dict[str, float]:
        self._reference = None  # it is asked before the first step only
        self.trained.train()
        routers_loss = 0.0
        for part in batch.parts:
            with routers_recorded(self.model) as routers:
                value = loss(part, self._scores(self.model, part))
            balance = router_loss(self.model, routers, part["attention_mask"])
            if balance is not None and self.options.router_aux_loss:
                loss.keep("aux_loss", balance)
                balance = self.model.config.get_text_config().router_aux_loss_coef * balance
                routers_loss += float(balance.detach())
                value = value + balance
            value.backward()
        numbers = loss.numbers()
        return {**numbers, "loss": numbers["loss"] + routers_loss}

    def step(self, learning_rate: float) -> float:
        import torch

        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.group.size > 1:
            for parameter in parameters:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.group.total(own) / self.group.size
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def state(self) -> TrainedState:
        from workers.training.checkpoints.optimizer_state import moments_of

        return TrainedState(trained_weights(self.trained), moments_of(self.optimizer))

    def load_state(self, state: TrainedState, path: Path) -> None:
        from workers.training.checkpoints.optimizer_state import set_moments

        if state.weights:
            load_trained_weights(self.trained, state.weights, path)
        set_moments(self.optimizer, state.moments, path)

    def save(self, folder: Path) -> Collection[str]:
        from workers.training.checkpoints.weights import save_model

        model = self.trained
        if self.adapter is not None:
            model.save_pretrained(folder / "adapter", save_embedding_layers=False)
            model = model.merge_and_unload()
        save_model(model, Path(self.job.policy.path), folder)
        return set(getattr(model, "all_tied_weights_keys", None) or ())

    def close(self) -> None:
        self.model = self.trained = self.optimizer = self._reference = None
        self._open.close()


def _adamw(model: Any, weight_decay: float) -> Any:
    """AdamW over what is trained; matrices decay, biases and norms do not."""
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    decaying = set(get_parameter_names(model, [torch.nn.LayerNorm], list(_NO_DECAY)))
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n in decaying], "weight_decay": weight_decay},
        {"params": [p for n, p in trained if n not in decaying], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)
