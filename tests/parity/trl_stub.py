"""TRL's trainers with nothing but what their loss reads, around a model that answers with chosen numbers."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from policies.objectives.loss import PairLoss, ReferencedLoss, UnpairedLoss


class NumbersModel:
    """Returns, for a row whose first token is i, row i of a table of token log-probs."""

    training = True

    def __init__(self, log_probs: Tensor, log_sum_squares: Tensor | None = None) -> None:
        self.log_probs, self.squares = log_probs, log_sum_squares

    def __call__(self, *, input_ids: Tensor, labels: Tensor, **_: Any) -> FusedCausalLMOutput:
        rows, scored = input_ids[:, 0], labels[:, 1:] != -100
        zeros = torch.zeros(scored.shape)
        return FusedCausalLMOutput(
            log_probs=self.log_probs[rows] * scored,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=None if self.squares is None else self.squares[rows] * scored,
        )


def inputs_for(mask: Tensor, first_row: int = 0) -> dict[str, Tensor]:
    """Batch of rows `first_row`, `first_row + 1`, ... with this mask of scored positions. [N, T-1] -> [N, T]"""
    rows = torch.arange(first_row, first_row + len(mask))
    ids = torch.ones((len(mask), mask.shape[1] + 1), dtype=torch.long)
    ids[:, 0] = rows
    completion = torch.cat([torch.zeros((len(mask), 1), dtype=torch.long), mask], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion}


def _bare(trainer_class: Any, args: Any, model: NumbersModel) -> Any:
    trainer = object.__new__(trainer_class)
    trainer.model = model
    trainer.args = args
    trainer.beta = args.beta
    trainer.precompute_ref_logps = True
    trainer.aux_loss_enabled = False
    trainer._metrics = {"train": defaultdict(list)}
    trainer._total_train_tokens = 0
    trainer._tp_size = 1
    trainer.accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return trainer


def trl_loss(
    loss: ReferencedLoss, model: NumbersModel, inputs: dict[str, Tensor], folder: str, **more: Any
) -> float:
    """TRL's own loss on a batch, configured by the loss's `trl()`."""
    spelled = loss.trl()
    common: dict[str, Any] = {
        "output_dir": folder,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "loss_type": spelled.loss_type,
        "beta": loss.config.beta,
        **spelled.arguments,
        **more,
    }
    if isinstance(loss, PairLoss):
        args = DPOConfig(**common)
        trainer = _bare(DPOTrainer, args, model)
        trainer.loss_types = args.loss_type
        trainer.loss_weights = [1.0]
        names: tuple[str, ...] = (
            "ld_alpha",
            "f_divergence_type",
            "f_alpha_divergence_coef",
            "label_smoothing",
            "use_weighting",
        )
    else:
        assert isinstance(loss, UnpairedLoss)
        trainer = _bare(KTOTrainer, KTOConfig(**common), model)
        trainer.calculate_KL = loss.kl_share > 0
        trainer.loss_type = spelled.loss_type
        names = ("desirable_weight", "undesirable_weight")
    for name in names:
        setattr(trainer, name, getattr(trainer.args, name))
    return float(trainer._compute_loss(model, inputs, return_outputs=False))
